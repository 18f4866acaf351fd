"""Checkpointing changes memory, never a gradient; a split changes nothing."""

from __future__ import annotations

import copy
import pickle
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from support.models import stir, tiny_config, token_ids
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

from r1lite.errors import R1Error
from r1lite.generation import generate
from r1lite.memory import recompute
from r1lite.memory.accumulate import accumulate, windows
from r1lite.memory.meter import MemoryMeter, SavedTensors
from r1lite.memory.recompute import POLICIES, CheckpointedBlock, checkpoint_blocks_
from r1lite.model import Block, R1Model
from r1lite.moe.balance import balance_loss, expert_load, routers, update_bias_
from r1lite.mtp import mtp_loss


def model_of(policy: str = "none", **changes: Any) -> R1Model:
    torch.manual_seed(0)
    config = tiny_config(
        num_nextn_predict_layers=1, q_lora_rank=20, attention_dropout=0.3, **changes
    )
    model = stir(R1Model(config).train())
    checkpoint_blocks_(model, policy)
    return model


def loss_of(model: R1Model, ids: Tensor) -> Tensor:
    """Every term that pretraining has; the same dropout each time."""
    torch.manual_seed(1)
    out = model(ids)
    loss = F.cross_entropy(out.logits[:, :-1].flatten(0, 1), ids[:, 1:].flatten())
    ahead = mtp_loss(model, ids, out.hidden)
    return loss + 0.3 * ahead + balance_loss(model, 0.1, 0.1, 0.01)


def gradients(model: R1Model) -> dict[str, Tensor]:
    return {n: p.grad for n, p in model.named_parameters() if p.grad is not None}


@pytest.mark.parametrize("policy", ["block", "selective"])
@pytest.mark.parametrize("low", [False, True])
def test_gradients_are_equal_with_dropout_on(policy: str, low: bool) -> None:
    ids = token_ids(3, 17)
    found = []
    for each in ("none", policy):
        model = model_of(each)
        with torch.autocast("cpu", torch.bfloat16, enabled=low):
            loss = loss_of(model, ids)
        loss.backward()
        found.append((loss.item(), gradients(model)))
    assert found[0][0] == found[1][0]
    assert found[0][1].keys() == found[1][1].keys()
    for name, grad in found[0][1].items():
        torch.testing.assert_close(found[1][1][name], grad, atol=1e-7, rtol=0)


def test_dropout_was_on() -> None:
    model, ids = model_of(), token_ids(2, 9)
    assert not torch.equal(model(ids).logits, model(ids).logits)


@pytest.mark.parametrize("policy", ["block", "selective"])
def test_routers_count_once_and_keep_their_scores(policy: str) -> None:
    model, ids = model_of(policy), token_ids(2, 10)
    loss = loss_of(model, ids)
    load = expert_load(model)
    last = [r.last for r in routers(model)]
    loss.backward()
    assert torch.equal(expert_load(model), load)
    assert load.sum(-1).tolist() == [2 * 10 * 2, 2 * 9 * 2]  # the trunk's, MTP's
    assert all(r.last is kept for r, kept in zip(routers(model), last, strict=True))
    assert all(r.training for r in routers(model))
    update_bias_(model, 0.001)
    assert int(expert_load(model).sum()) == 0


def test_each_policy_keeps_less_than_the_one_before() -> None:
    ids = token_ids(4, 32)
    alive, peak = {}, {}
    for policy in POLICIES:
        model = model_of(policy)
        with MemoryMeter() as meter:
            loss = loss_of(model, ids)
            alive[policy] = meter.alive
            loss.backward()
        peak[policy] = meter.peak
    assert alive["block"] < 0.8 * alive["selective"] < 0.64 * alive["none"]
    assert peak["block"] < peak["selective"] < peak["none"]


def test_saved_tensors_do_not_see_what_a_selective_checkpoint_keeps() -> None:
    ids, saved = token_ids(4, 32), {}
    for policy in POLICIES:
        model = model_of(policy)
        with SavedTensors(model) as meter:
            loss_of(model, ids)
        saved[policy] = meter.bytes
    assert saved["selective"] == saved["block"] < saved["none"]


class CountProducts(TorchDispatchMode):
    def __init__(self) -> None:
        super().__init__()
        self.shapes: list[tuple[int, ...]] = []

    def __torch_dispatch__(
        self, func: Any, types: Any, args: Any = (), kwargs: Any = None
    ) -> Any:
        if func in (torch.ops.aten.mm.default, torch.ops.aten._grouped_mm.default):
            self.shapes.append(tuple(args[1].shape))
        return func(*args, **(kwargs or {}))


def products(policy: str) -> list[tuple[int, ...]]:
    model = model_of(policy)
    with CountProducts() as counter:
        loss_of(model, token_ids(2, 12)).backward()
    return sorted(counter.shapes)


def test_selective_repeats_the_up_projections_and_no_other_product() -> None:
    config = model_of().config
    assert config.q_lora_rank is not None
    query = (config.q_lora_rank, config.num_attention_heads * config.qk_head_dim)
    wide = config.qk_nope_head_dim + config.v_head_dim
    expanded = (config.kv_lora_rank, config.num_attention_heads * wide)
    once, again = products("none"), products("selective")
    for shape in once:
        again.remove(shape)
    assert sorted(again) == sorted([query, expanded] * 3)  # two blocks and MTP's
    assert len(products("block")) > len(once) + 6


def test_names_copies_and_files_do_not_notice() -> None:
    plain, model = model_of(), model_of("selective")
    assert list(plain.state_dict()) == list(model.state_dict())
    twin = copy.deepcopy(model)
    blocks = [m for m in twin.modules() if isinstance(m, Block)]
    assert [type(b) for b in blocks] == [CheckpointedBlock] * 3
    own = {p.data_ptr() for p in twin.parameters()}
    twin.zero_grad()
    loss_of(twin, token_ids(2, 8)).backward()
    assert all(p.grad is None for p in model.parameters())
    assert own == {p.data_ptr() for p in twin.parameters()}
    loaded = pickle.loads(pickle.dumps(model))
    assert loaded.layers[0].policy == "selective"
    plain.load_state_dict(model.state_dict())


def test_without_gradients_or_with_a_cache_nothing_is_repeated(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    model, plain = model_of("block").eval(), model_of().eval()

    def never(*args: object, **kwargs: object) -> None:
        raise AssertionError("checkpoint was called")

    monkeypatch.setattr(recompute, "checkpoint", never)
    prompt = [[3, 4, 5], [6, 7]]
    assert generate(model, prompt, 6, stop_ids=[]) == generate(
        plain, prompt, 6, stop_ids=[]
    )
    model(token_ids(1, 5), cache=model.new_cache(1, 8))  # with gradients on
    with torch.no_grad():
        model(token_ids(1, 5))
    with pytest.raises(AssertionError, match="checkpoint was called"):
        model(token_ids(1, 5))


def test_none_takes_it_back() -> None:
    model = checkpoint_blocks_(model_of("block"), "none")
    blocks = [m for m in model.modules() if isinstance(m, Block)]
    assert [type(b) for b in blocks] == [Block] * 3
    assert not any("policy" in vars(b) for b in blocks)


def test_an_unknown_policy_is_named() -> None:
    with pytest.raises(R1Error, match="'all' is unknown; choose none, block or sel"):
        checkpoint_blocks_(model_of(), "all")


def test_saved_tensors_by_hand() -> None:
    """A layer saves its input, ReLU its output; views and weights are free."""
    layer, x = nn.Linear(10, 6), torch.randn(5, 10, requires_grad=True)
    with SavedTensors(layer) as meter:
        layer(x).relu().sum()
    assert meter.bytes == 4 * (5 * 10 + 5 * 6)
    with SavedTensors(layer) as meter:
        layer(x) + layer(x[:2]).sum()  # the same storage
    assert meter.bytes == 4 * 5 * 10


def test_the_meter_by_hand() -> None:
    before = torch.ones(1000)
    with MemoryMeter() as meter:
        a = torch.ones(100)
        a.add_(1)
        view = a.view(10, 10)[2:]
        assert meter.alive == 400
        b = before * 2
        assert (meter.alive, meter.peak) == (4400, 4400)
        del b
        before.mul_(3)
        del a
        assert meter.alive == 400  # the view holds it
        del view
    assert (meter.alive, meter.peak) == (0, 4400)


# Accumulation.

Rows = tuple[Tensor, Tensor]


def step_terms(model: R1Model, batch: Rows) -> dict[str, tuple[Tensor, int]]:
    """Trained tokens, tokens two steps on and sequences have units of their own."""
    ids, mask = batch
    hidden = model.hidden(ids)
    wanted = mask[:, 1:]
    logits = model.lm_head(hidden[:, :-1][wanted])
    ahead = mtp_loss(model, ids, hidden, target_mask=mask)
    return {
        "loss": (F.cross_entropy(logits, ids[:, 1:][wanted]), int(wanted.sum())),
        "ahead": (0.3 * ahead, int(mask[:, 2:].sum())),
        "balance": (balance_loss(model, alpha=0.5), len(ids)),
    }


def totals_of(mask: Tensor) -> dict[str, int]:
    return {
        "loss": int(mask[:, 1:].sum()),
        "ahead": int(mask[:, 2:].sum()),
        "balance": len(mask),
    }


def batch_of(rows: int = 8, seq: int = 14) -> Rows:
    """Rows with 2, 3, 4, … trained tokens; the last row has none."""
    generator = torch.Generator().manual_seed(3)
    ids = torch.randint(61, (rows, seq), generator=generator)
    mask = torch.arange(seq) >= seq - 2 - torch.arange(rows)[:, None]
    mask[-1] = False
    return ids, mask


@pytest.mark.parametrize("split", [[4, 4], [1, 3, 4], [7, 1], [1] * 8])
def test_any_split_gives_the_same_gradient(split: list[int]) -> None:
    ids, mask = batch_of()
    found = []
    for sizes in ([8], split):
        model = model_of(n_routed_experts=4)
        model.eval()
        for router in routers(model):
            router.train()  # balance on, dropout off: splits draw differently
        batches = zip(ids.split(sizes), mask.split(sizes), strict=True)
        means = accumulate(
            batches, lambda b, m=model: step_terms(m, b), totals_of(mask)
        )
        found.append((means, gradients(model), expert_load(model)))
    (means, grads, load), (split_means, split_grads, split_load) = found
    assert split_means == pytest.approx(means, abs=1e-5)
    assert torch.equal(load, split_load)
    for name, grad in grads.items():
        torch.testing.assert_close(split_grads[name], grad, atol=2e-6, rtol=1e-4)


def test_the_mean_of_means_is_another_gradient() -> None:
    """What the test above would not notice if all rows had as many tokens."""
    ids, mask = batch_of(7)
    mask[-1] = True
    w = torch.zeros(61, requires_grad=True)

    def mean(at: slice) -> Tensor:
        logits = w.expand(*ids[at].shape, 61)[mask[at]]
        return F.cross_entropy(logits, ids[at][mask[at]])

    (whole,) = torch.autograd.grad(mean(slice(None)), w)
    halves = (mean(slice(0, 6)) + mean(slice(6, None))) / 2
    (wrong,) = torch.autograd.grad(halves, w)
    assert (wrong - whole).abs().max() > 0.01
    found = accumulate(
        [slice(0, 6), slice(6, None)],
        lambda at: {"loss": (mean(at), int(mask[at].sum()))},
        {"loss": int(mask.sum())},
    )
    torch.testing.assert_close(w.grad, whole)
    assert found["loss"] == pytest.approx(mean(slice(None)).item(), abs=1e-6)


def test_a_total_that_is_too_small_is_named() -> None:
    w = torch.ones(1, requires_grad=True)
    with pytest.raises(R1Error, match=r"totals.loss: 3, but"):
        accumulate([2, 2], lambda n: {"loss": (w.sum(), n)}, {"loss": 3})


def test_nothing_to_train_on_leaves_no_gradient() -> None:
    w = torch.ones(1, requires_grad=True)
    found = accumulate([0, 0], lambda n: {"loss": (w.sum() / n, n)}, {"loss": 0})
    assert found == {"loss": 0.0}
    assert w.grad is None


def test_the_last_window_is_short_but_there() -> None:
    assert list(windows(range(7), 3)) == [[0, 1, 2], [3, 4, 5], [6]]
    assert list(windows([], 3)) == []
    with pytest.raises(R1Error, match="at least 1"):
        list(windows([1], 0))
