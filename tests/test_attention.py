"""MLA against its own other forms: slow, cached, absorbed, expanded."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from support.models import stir, tiny_config, tiny_model, token_ids
from torch import Tensor

from r1lite.attention.cache import LatentCache
from r1lite.attention.mask import additive_mask, positions_of
from r1lite.attention.mla import MLA
from r1lite.attention.norm import RMSNorm
from r1lite.attention.rope import Rope, frequencies, rotate, softmax_scale
from r1lite.config import R1Config
from r1lite.errors import R1Error
from r1lite.model import R1Model

YARN = {"type": "yarn", "factor": 40, "original_max_position_embeddings": 4096}


def test_norm_by_hand_and_in_bfloat16() -> None:
    norm = RMSNorm(2, eps=0.0)
    torch.testing.assert_close(
        norm(torch.tensor([3.0, 4.0])), torch.tensor([3.0, 4.0]) / math.sqrt(12.5)
    )
    wide = RMSNorm(64).to(torch.bfloat16)
    x = 300 * torch.randn(5, 64, dtype=torch.bfloat16)
    want = x.double() / x.double().square().mean(-1, keepdim=True).sqrt()
    assert wide(x).dtype == torch.bfloat16
    torch.testing.assert_close(wide(x).double(), want, atol=0.02, rtol=0.01)


def test_rotation_by_hand() -> None:
    quarter = torch.tensor([math.pi / 2, 0.0])
    x = torch.tensor([1.0, 2.0, 3.0, 4.0])
    # neighbours: (1, 2) turns to (-2, 1), (3, 4) stays; written in halves
    got = rotate(x, quarter.cos(), quarter.sin(), interleave=True)
    torch.testing.assert_close(got, torch.tensor([-2.0, 3.0, 1.0, 4.0]))
    # halves: (1, 3) turns to (-3, 1), (2, 4) stays
    got = rotate(x, quarter.cos(), quarter.sin(), interleave=False)
    torch.testing.assert_close(got, torch.tensor([-3.0, 2.0, 1.0, 4.0]))


@pytest.mark.parametrize("interleave", [True, False])
def test_only_distance_matters(interleave: bool) -> None:
    rope = Rope(tiny_config())
    query, key = torch.randn(2, 8)

    def score(at: int, of: int) -> Tensor:
        cos, sin = rope(torch.tensor([[at, of]]), torch.float32)
        turned = [
            rotate(v, cos[0, i], sin[0, i], interleave)
            for i, v in enumerate((query, key))
        ]
        return turned[0] @ turned[1]

    torch.testing.assert_close(score(3, 1), score(47, 45), atol=1e-5, rtol=0)
    assert (score(3, 1) - score(4, 1)).abs() > 1e-3


def test_the_layouts_differ_by_a_permutation() -> None:
    cos, sin = Rope(tiny_config())(torch.tensor([[0, 3, 9]]), torch.float32)
    x = torch.randn(1, 3, 8)
    halves = torch.cat((torch.arange(0, 8, 2), torch.arange(1, 8, 2)))
    got = rotate(x[..., halves], cos, sin, interleave=False)
    assert torch.equal(got, rotate(x, cos, sin, interleave=True))


def test_fractional_positions_are_linear_interpolation() -> None:
    rope = Rope(tiny_config())
    cos, sin = rope(torch.tensor([[6.0, 3.0]]) / 4, torch.float32)
    angle = torch.tensor([[1.5], [0.75]]) * rope.speed
    torch.testing.assert_close(cos[0], angle.cos())
    torch.testing.assert_close(sin[0], angle.sin())


def test_yarn_keeps_fast_pairs_and_stretches_slow_ones() -> None:
    config = R1Config.preset("v3")
    fast, factor = frequencies(config)
    plain, _ = frequencies(config.with_(rope_scaling=None))
    ratio = plain / fast
    assert ratio[:10].tolist() == pytest.approx([1.0] * 10)
    assert ratio[-8:].tolist() == pytest.approx([40.0] * 8)
    assert ((ratio[1:] - ratio[:-1]) >= -1e-4).all()
    assert factor == 1.0  # mscale equals mscale_all_dim
    assert softmax_scale(config) == pytest.approx(
        192**-0.5 * (0.1 * math.log(40) + 1) ** 2
    )


def test_attention_factor_is_taken_as_given() -> None:
    config = tiny_config(rope_scaling={**YARN, "attention_factor": 0.5})
    cos, _ = Rope(config)(torch.zeros(1, 1), torch.float32)
    assert cos.tolist() == [[[0.5] * 4]]


@pytest.mark.parametrize(
    ("scaling", "says"),
    [({"type": "linear", "factor": 2}, "'linear' is not built"), ({}, None)]
    + [({**YARN, key: None}, key) for key in YARN if key != "type"],
)
def test_unusable_scaling(scaling: dict[str, Any], says: str | None) -> None:
    config = tiny_config(rope_scaling=scaling)
    if says is None:
        assert frequencies(config)[1] == 1.0
        return
    with pytest.raises(R1Error, match=says):
        R1Model(config)


def test_rope_survives_a_cast_to_bfloat16() -> None:
    model = tiny_model()
    before = model.rope(torch.tensor([[50]]), torch.float32)[0]
    model.to(torch.bfloat16)
    assert torch.equal(model.rope(torch.tensor([[50]]), torch.float32)[0], before)


def slow_mla(x: Tensor, m: MLA, rope: Rope) -> Tensor:
    """V2 section 2.1, one head and one query at a time. x: (seq, hidden)."""
    seq = len(x)
    cos, sin = (t[0] for t in rope(torch.arange(seq).unsqueeze(0), x.dtype))
    q = m.q_proj(x).view(seq, m.heads, -1)
    latent, shared = m.kv_a_proj_with_mqa(x).split((m.rank, m.rope), dim=-1)
    kv = m.kv_b_proj(m.kv_a_layernorm(latent)).view(seq, m.heads, -1)
    rows = []
    for t in range(seq):
        heads = []
        for h in range(m.heads):
            q_rope = rotate(q[t, h, m.nope :], cos[t], sin[t], m.interleave)
            scores = []
            for s in range(t + 1):
                k_rope = rotate(shared[s], cos[s], sin[s], m.interleave)
                nope = q[t, h, : m.nope] @ kv[s, h, : m.nope]
                scores.append((nope + q_rope @ k_rope) * m.scale)
            p = torch.stack(scores).softmax(0)
            heads.append(p @ kv[: t + 1, h, m.nope :])
        rows.append(m.o_proj(torch.cat(heads)))
    return torch.stack(rows)


def test_same_as_the_slow_loop() -> None:
    config = tiny_config(attention_bias=True)
    model = stir(R1Model(config).eval())
    mla = model.layers[0].self_attn
    x = torch.randn(1, 7, 32)
    turn = model.rope(torch.arange(7).unsqueeze(0), x.dtype)
    want = slow_mla(x[0], mla, model.rope)
    torch.testing.assert_close(mla(x, turn)[0], want, atol=1e-5, rtol=1e-5)


ARCHITECTURES: dict[str, dict[str, Any]] = {
    "plain": {},
    "query latent": {"q_lora_rank": 14, "attention_bias": True},
    "wide values": {"v_head_dim": 30},
    "halves": {"rope_interleave": False},
    "yarn": {"rope_scaling": {**YARN, "mscale": 0.7, "mscale_all_dim": 1.3}},
}
every_architecture = pytest.mark.parametrize(
    "changes", ARCHITECTURES.values(), ids=ARCHITECTURES
)


@every_architecture
@pytest.mark.parametrize("chunks", [(12,), (5, 7), (6, *[1] * 6), (1,) * 12, (4, 1, 7)])
@torch.no_grad()
def test_cached_equals_full(changes: dict[str, Any], chunks: tuple[int, ...]) -> None:
    model = tiny_model(**changes)
    ids = token_ids(3, 12)
    cache = model.new_cache(3, 12)
    parts = [model(part, cache=cache).logits for part in ids.split(chunks, dim=1)]
    assert cache.length == 12
    torch.testing.assert_close(
        torch.cat(parts, 1), model(ids).logits, atol=1e-5, rtol=0
    )


@every_architecture
@torch.no_grad()
def test_left_padding_changes_nothing(changes: dict[str, Any]) -> None:
    model = tiny_model(**changes)
    prompts = [token_ids(1, n) for n in (3, 8, 5)]
    future = token_ids(3, 4)
    batch, mask = torch.zeros(3, 8, dtype=torch.int64), torch.zeros(3, 12)
    for row, prompt in enumerate(prompts):
        batch[row, 8 - prompt.shape[1] :] = prompt
        mask[row, 8 - prompt.shape[1] :] = 1
    cache = model.new_cache(3, 12)
    parts = [model(batch, attention_mask=mask[:, :8], cache=cache).logits]
    for step in range(4):
        past = 9 + step
        token = future[:, step : step + 1]
        out = model(token, attention_mask=mask[:, :past], cache=cache)
        parts.append(out.logits)
    logits = torch.cat(parts, 1)
    assert logits.isfinite().all()
    for row, prompt in enumerate(prompts):
        alone = model(torch.cat((prompt, future[row : row + 1]), 1)).logits[0]
        got = logits[row, -alone.shape[0] :]
        torch.testing.assert_close(got, alone, atol=1e-5, rtol=0)


@every_architecture
def test_packed_documents_are_separate_documents(changes: dict[str, Any]) -> None:
    model = tiny_model(**changes)
    lengths = (4, 1, 6)
    ids = token_ids(1, sum(lengths))
    documents = torch.repeat_interleave(torch.tensor([7, 3, 9]), torch.tensor(lengths))
    packed = model(ids, document_ids=documents.unsqueeze(0)).logits[0]
    alone = [model(part).logits[0] for part in ids.split(lengths, dim=1)]
    torch.testing.assert_close(packed, torch.cat(alone), atol=1e-5, rtol=0)
    whole = model(ids).logits[0]
    assert (whole[4:] - packed[4:]).abs().max() > 1e-3


def test_the_future_is_hidden() -> None:
    model = tiny_model()
    ids = token_ids(1, 9)
    embedded = model.embed_tokens(ids).detach().requires_grad_()
    model.embed_tokens.register_forward_hook(lambda *_: embedded)
    model(ids).logits[0, 4].sum().backward()
    assert embedded.grad is not None
    seen = embedded.grad[0].abs().sum(-1) > 0
    assert seen.tolist() == [True] * 5 + [False] * 4


def test_absorbed_equals_expanded_gradients_included() -> None:
    mla = tiny_model().layers[0].self_attn
    past = torch.randn(3, 7, mla.rank + mla.rope, requires_grad=True)
    query = torch.randn(3, 1, mla.heads, mla.nope + mla.rope, requires_grad=True)
    parts = query.split((mla.nope, mla.rope), dim=-1)
    mask = torch.zeros(3, 1, 1, 7)
    mask[0, ..., :4] = -torch.inf
    latent, k_rope = past.split((mla.rank, mla.rope), dim=-1)
    want = mla._expanded(*parts, latent, k_rope, mask)
    got = mla._absorbed(*parts, past, mask)
    torch.testing.assert_close(got, want, atol=1e-6, rtol=1e-5)
    inputs, weights = (past, query, mla.kv_b_proj.weight), torch.randn_like(want)
    grads = [torch.autograd.grad((out * weights).sum(), inputs) for out in (got, want)]
    for ours, theirs in zip(*grads, strict=True):
        torch.testing.assert_close(ours, theirs, atol=1e-5, rtol=1e-4)


@torch.no_grad()
def test_selected_rows_go_on_as_if_alone() -> None:
    model = tiny_model()
    ids = token_ids(4, 9)
    cache = model.new_cache(4, 9)
    model(ids[:, :6], cache=cache)
    keep = torch.tensor([2, 0])
    cache.select(keep)
    got = [model(ids[keep, t : t + 1], cache=cache).logits for t in range(6, 9)]
    want = model(ids[keep]).logits[:, 6:]
    torch.testing.assert_close(torch.cat(got, 1), want, atol=1e-5, rtol=0)


def test_what_the_cache_holds() -> None:
    config = tiny_config()
    cache = LatentCache(config, 2, 5, dtype=torch.bfloat16)
    assert len(cache.data) == 2
    assert cache.data[0].shape == (2, 5, 12 + 8)
    assert cache.bytes_per_token() == 2 * 20 * 2
    latent, key = torch.randn(2, 3, 12), torch.randn(2, 3, 8)
    assert cache.append(1, latent, key).shape == (2, 3, 20)
    assert cache.length == 0
    cache.advance(3)
    both = cache.append(1, latent[:, :2], key[:, :2])
    want = torch.cat((latent, key), -1).to(torch.bfloat16)
    assert torch.equal(both, torch.cat((want, want[:, :2]), 1))


def test_a_token_of_v3_takes_70272_bytes() -> None:
    cache = LatentCache(R1Config.preset("v3"), 1, 1, dtype=torch.bfloat16)
    assert cache.bytes_per_token() == 70_272


def test_a_full_cache_says_so() -> None:
    model = tiny_model()
    cache = model.new_cache(1, 4)
    model(token_ids(1, 3), cache=cache)
    with pytest.raises(R1Error, match=r"cache: 5 tokens .* max_len of 4"):
        model(token_ids(1, 2), cache=cache)
    model(token_ids(1, 1), cache=cache)  # the failed call left it usable


def test_dropout_acts_in_training_only() -> None:
    model = tiny_model(attention_dropout=0.5, first_k_dense_replace=2)
    ids = token_ids(2, 9)
    assert torch.equal(model(ids).logits, model(ids).logits)
    model.train()
    assert not torch.equal(model(ids).logits, model(ids).logits)


def test_positions_and_masks_by_hand() -> None:
    ids = torch.zeros(2, 2, dtype=torch.int64)
    mask = torch.tensor([[0, 0, 1, 1], [1, 1, 1, 1]])
    assert positions_of(ids, mask, 2).tolist() == [[0, 1], [2, 3]]
    assert positions_of(ids, None, 2).tolist() == [[2, 3]]
    like = torch.zeros(1)
    assert additive_mask(4, 4, None, None, like) is None
    assert additive_mask(1, 4, None, None, like) is None
    got = additive_mask(2, 4, mask, None, like)
    assert got is not None and got.shape == (2, 1, 2, 4)
    assert (got == 0).long()[0, 0].tolist() == [[0, 0, 1, 0], [0, 0, 1, 1]]
    assert (got == 0).long()[1, 0].tolist() == [[1, 1, 1, 0], [1, 1, 1, 1]]
    documents = torch.tensor([[5, 5, 6]])
    got = additive_mask(3, 3, None, documents, like)
    assert got is not None
    assert (got == 0).long()[0, 0].tolist() == [[1, 0, 0], [1, 1, 0], [0, 0, 1]]
