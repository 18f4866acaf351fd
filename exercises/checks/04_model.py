"""Checks of chapter 4's exercises. They run the reader's file, nothing else."""

import math
from types import ModuleType, SimpleNamespace

import torch
import torch.nn.functional as F
from torch import Tensor

from r1lite.book.expect import close, expect, given, shape
from r1lite.config import R1Config
from r1lite.generation import Sampling
from r1lite.model import R1Model

TINY = R1Config.preset("nano").with_(
    vocab_size=53,
    hidden_size=24,
    intermediate_size=40,
    moe_intermediate_size=16,
    num_hidden_layers=2,
    kv_lora_rank=12,
    qk_rope_head_dim=8,
    qk_nope_head_dim=12,
    v_head_dim=10,
    initializer_range=0.2,
    max_position_embeddings=64,
)


def tiny() -> R1Model:
    """A model in which every norm and every expert counts."""
    model = R1Model(TINY).eval()
    with torch.no_grad():
        for name, p in model.named_parameters():
            if "norm" in name:
                p.uniform_(0.5, 1.5)
    return model


def tokens(batch: int, seq: int) -> Tensor:
    return torch.randint(TINY.vocab_size, (batch, seq))


def check_4_1(mine: ModuleType) -> None:
    found = mine.MTP_OF_NANO
    given(found)
    c = R1Config.preset("nano")
    with torch.device("meta"):
        model = R1Model(c)
    assert model.mtp is not None
    right = sum(p.numel() for p in model.mtp.parameters())
    h = c.hidden_size
    slips = {
        2 * c.vocab_size * h: "embedding and head are shared with the trunk, so "
        "they add nothing",
        c.vocab_size * h: "an embedding or a head is counted, but both are shared",
        -2 * h * h: "18,432 are missing: eh_proj (2 x 96 x 96), or the shared "
        "expert (3 x 96 x 64), which has as many",
        -h * h: "eh_proj reads both inputs side by side: 2 x hidden columns",
        -3 * h: "the three norms of the module (enorm, hnorm, norm) are missing",
        -2 * h: "two of the five norms over the hidden size are missing",
        -5 * h: "no norm over the hidden size is counted, and there are five",
        -c.kv_lora_rank: "the latent has a norm of its own, of kv_lora_rank weights",
        c.n_routed_experts: "the router's bias is a buffer; no optimiser moves it",
    }
    expect(found != sum(p.numel() for p in model.parameters()), "that is all of nano")
    expect(found not in (right + s for s in slips), _slip(slips, found - right))
    expect(
        found == right,
        f"{found:,} is not it; write down the block (norms, attention, router, "
        "experts), then the projection and the three norms around it",
    )


def _slip(slips: dict[int, str], gap: int) -> str:
    return slips.get(gap, "")


def check_4_2(mine: ModuleType) -> None:
    forward = mine.block_forward
    x = torch.randn(2, 3, 5)
    seen: dict[str, tuple[object, ...]] = {}

    def attention(h: Tensor, *rest: object) -> Tensor:
        seen["attention"] = (h, *rest)
        return h * attend

    def mlp(h: Tensor) -> Tensor:
        seen["mlp"] = (h,)
        return h * think

    toy = SimpleNamespace(
        self_attn=attention,
        mlp=mlp,
        input_layernorm=lambda h: 3 * h,
        post_attention_layernorm=lambda h: 7 * h,
    )
    attend = think = 0.0
    out = forward(toy, x, "turn", "mask", "cache")
    shape(out, x.shape, "the block's output")
    expect("attention" in seen, "self.self_attn was never called")
    expect("mlp" in seen, "self.mlp was never called")
    close(
        out,
        x,
        "with attention and mlp giving zeros the block must return x itself: keep "
        "the path that is added to free of norms, and add to x",
    )
    expect(
        seen["attention"][1:2] == ("turn",) and len(seen["attention"]) == 4,
        "self_attn takes (x, turn, mask, cache), in this order",
    )
    expect(seen["attention"][2] == "mask", "the mask did not reach the attention")
    expect(seen["attention"][3] == "cache", "the cache did not reach the attention")
    for name, factor, norm in (
        ("attention", 3, "input_layernorm"),
        ("mlp", 7, "post_attention_layernorm"),
    ):
        given = seen[name][0]
        assert isinstance(given, Tensor)
        close(given, factor * x, f"the {name} must read {norm}(x): the norm is before")
    attend, think = 1.0, 0.0
    out = forward(toy, x, None)
    close(out, 4 * x, "x + attention(norm(x)): the attention's result is not added")
    think = 1.0
    out = forward(toy, x, None)
    close(out, 32 * x, "the mlp must read what the attention has already added to")
    model = tiny()
    ids = tokens(3, 6)
    h = model.embed_tokens(ids)
    turn = model.rope(torch.arange(6).unsqueeze(0), h.dtype)
    mask = torch.full((6, 6), -torch.inf).triu(1)[None, None]
    mask[..., 4, 1] = -torch.inf
    for block in model.layers:
        a = h + block.self_attn(_norm(h, block.input_layernorm), turn, mask)
        want = a + block.mlp(_norm(a, block.post_attention_layernorm))
        close(forward(block, h, turn, mask), want, "a real block computes otherwise")


def _norm(x: Tensor, norm: torch.nn.Module) -> Tensor:
    size = x.square().mean(-1, keepdim=True).add(TINY.rms_norm_eps).sqrt()
    return x / size * norm.weight


def check_4_3(mine: ModuleType) -> None:
    forward = mine.mtp_forward
    model = tiny()
    mtp, width = model.mtp, TINY.hidden_size
    assert mtp is not None
    ids = tokens(2, 5)
    embeds = model.embed_tokens(ids)
    hidden = torch.randn(2, 5, width)
    turn = model.rope(torch.arange(5).unsqueeze(0), hidden.dtype)
    shape(forward(mtp, embeds, hidden, turn), hidden.shape, "the module's output")
    left, right = mtp.eh_proj.weight.chunk(2, dim=1)

    def want(mask: Tensor | None = None, head: bool = True) -> Tensor:
        e, h = _norm(embeds, mtp.enorm), _norm(hidden, mtp.hnorm)
        out = mtp.block(e @ left.T + h @ right.T, turn, mask)
        return _norm(out, mtp.norm) if head else out

    with torch.no_grad():
        found = forward(mtp, embeds, hidden, turn)
        gap = (found - want(head=False)).abs().max()
        expect(gap > 1e-5, "the head's norm (self.norm) is missing at the end")
        swapped = mtp.eh_proj.weight.roll(width, dims=1)
        kept = mtp.eh_proj.weight.clone()
        mtp.eh_proj.weight.copy_(swapped)
        other = forward(mtp, embeds, hidden, turn)
        mtp.eh_proj.weight.copy_(kept)
        expect(
            (other - want()).abs().max() > 1e-5,
            "the halves are the other way round: the first hidden_size columns of "
            "eh_proj belong to the embedding, the last to the trunk's state",
        )
        close(
            found,
            want(),
            "enorm is the embedding's norm and hnorm the trunk state's; each half "
            "passes through its own",
            atol=1e-4,
        )
        mask = torch.full((5, 5), -torch.inf).triu(1)[None, None]
        mask[..., 3, 0] = -torch.inf
        masked = forward(mtp, embeds, hidden, turn, mask)
        close(masked, want(mask), "the mask does not reach the block", atol=1e-4)
        layers = TINY.num_hidden_layers + 1
        cache = R1Model(TINY.with_(num_hidden_layers=layers)).new_cache(2, 5)
        forward(mtp, embeds, hidden, turn, None, cache)
        written = cache.data[layers - 1].abs().sum() > 0
        expect(written, "the cache does not reach the block, so nothing was kept")


def check_4_4(mine: ModuleType) -> None:
    loss_of = mine.mtp_loss
    model = tiny()
    ids = tokens(2, 7)
    hidden = model(ids).hidden
    found = loss_of(model, ids, hidden)
    shape(found, (), "the loss")
    scores = model.mtp_logits(ids, hidden).log_softmax(-1)
    last = [-scores[b, i, ids[b, i + 1]] for b in range(2) for i in range(1, 6)]
    expect(
        abs(found - torch.stack(last).mean()) > 1e-5,
        "state i is scored on token i+1, which it has read; its target is i+2, and "
        "the last state has none: drop the last, not the first",
    )
    close(found, _slow(model, ids, hidden), "the mean over all states but the last")
    documents = torch.tensor([[0] * 4 + [1] * 3, [0] * 2 + [1] * 5])
    state = model(ids, document_ids=documents).hidden
    found = loss_of(model, ids, state, document_ids=documents)
    loose = model.mtp_logits(ids, state).log_softmax(-1)
    expect(
        abs(found - _slow(model, ids, state, documents, scores=loose)) > 1e-5,
        "the MTP block looks across the border between two documents: give "
        "document_ids to model.mtp_hidden too",
    )
    expect(
        abs(found - _slow(model, ids, state, documents, borders=False)) > 1e-5,
        "a target in the next document was counted: tokens i, i+1 and i+2 must "
        "share one (mtp_targets knows which do)",
    )
    close(
        found,
        _slow(model, ids, state, documents),
        "divide by how many positions count, not by how many there are",
    )
    marked = torch.rand(2, 7) < 0.5
    marked[0, 2] = True
    found = loss_of(model, ids, hidden, target_mask=marked)
    want = _slow(model, ids, hidden, marked=marked)
    close(found, want, "target_mask marks the tokens that are trained on: use it")
    nothing = loss_of(model, ids, hidden, target_mask=torch.zeros(2, 7))
    close(nothing, 0.0, "where nothing counts the loss is 0: clamp the count to 1")
    real = torch.ones(2, 7, dtype=torch.bool)
    real[0, :3] = False
    padded = model(ids, attention_mask=real).hidden
    found = loss_of(model, ids, padded, attention_mask=real, target_mask=real)
    scores = model.mtp_logits(ids, padded, attention_mask=real).log_softmax(-1)
    want = _slow(model, ids, padded, marked=real, scores=scores)
    close(found, want, "attention_mask does not reach model.mtp_hidden")
    moved = torch.arange(7).unsqueeze(0) * 3
    found = loss_of(model, ids, hidden, position_ids=moved)
    scores = model.mtp_logits(ids, hidden, position_ids=moved).log_softmax(-1)
    want = _slow(model, ids, hidden, scores=scores)
    close(found, want, "position_ids do not reach model.mtp_hidden")
    leaf = hidden.detach().requires_grad_()
    loss = loss_of(model, ids, leaf)
    expect(loss.requires_grad, "the loss has no gradient")
    (grad,) = torch.autograd.grad(loss, leaf, allow_unused=True)
    expect(
        grad is not None and grad.abs().sum() > 0,
        "no gradient reaches the trunk: MTP trains it too, so do not detach hidden",
    )
    (want,) = torch.autograd.grad(_slow(model, ids, leaf), leaf)
    close(grad, want, "the gradient to the trunk is another")


def _slow(
    model: R1Model,
    ids: Tensor,
    hidden: Tensor,
    documents: Tensor | None = None,
    marked: Tensor | None = None,
    scores: Tensor | None = None,
    borders: bool = True,
) -> Tensor:
    """Position by position, with what counts decided by three comparisons."""
    if scores is None:
        given = model.mtp_logits(ids, hidden, document_ids=documents)
        scores = given.log_softmax(-1)
    picked = []
    for b, row in enumerate(ids):
        for i in range(len(row) - 2):
            own = documents is None or not borders
            own = own or len(set(documents[b, i : i + 3].tolist())) == 1
            if own and (marked is None or marked[b, i + 2]):
                picked.append(-scores[b, i, row[i + 2]])
    return torch.stack(picked).mean()


def check_4_5(mine: ModuleType) -> None:
    choose = mine.choose
    p = torch.tensor([0.1, 0.0, 0.6, 0.3])
    rows = p.log().expand(5, 4)
    at = torch.tensor([0.05, 0.2, 0.69, 0.71, 0.99])
    token, logp = choose(rows, Sampling(), at)
    shape(token, (5,), "the tokens")
    shape(logp, (5,), "the log-probabilities")
    expect(token.dtype == torch.int64, "tokens are int64 ids")
    wanted = [0, 2, 2, 3, 3]
    expect(
        token.tolist() == wanted,
        "probabilities 0.1, 0, 0.6, 0.3 and the numbers 0.05, 0.2, 0.69, 0.71, 0.99 "
        f"give the tokens {wanted}, not {token.tolist()}: find the interval of the "
        "cumulative sum",
    )
    close(logp, p.log()[token], "the log-probability of the token that was taken")
    zero = torch.tensor([[0.0, 1.0, 0.0]]).log()
    token, _ = choose(zero, Sampling(), torch.tensor([0.0]))
    expect(
        token.tolist() == [1],
        "a token of probability 0 was taken: with the number 0 the first interval "
        "is empty, so search with right=True",
    )
    logits = torch.randn(6, 9)
    at = torch.rand(6)
    token, logp = choose(logits, Sampling(temperature=0), at)
    expect(torch.equal(token, logits.argmax(-1)), "temperature 0 takes the largest")
    want = logits.log_softmax(-1).gather(-1, token[:, None])[:, 0]
    close(logp, want, "at temperature 0 the log-probability is the raw logits'")
    for how in (Sampling(temperature=0.5), Sampling(temperature=2.0)):
        token, logp = choose(logits, how, at)
        scaled = (logits / how.temperature).softmax(-1)
        wanted = [_interval(r, float(u)) for r, u in zip(scaled, at, strict=True)]
        expect(
            token.tolist() == wanted,
            "divide the logits by the temperature before the softmax",
        )
        close(logp, scaled.log()[range(6), token], "log-probability at a temperature")
    how = Sampling(temperature=0.7, top_k=3)
    token, logp = choose(logits, how, at)
    best = (logits / 0.7).topk(3).indices
    kept = all(t in b for t, b in zip(token.tolist(), best.tolist(), strict=True))
    expect(kept, "a token that top-k had cut was taken: apply filter_logits")
    want = (logits / 0.7).log_softmax(-1).gather(-1, token[:, None])[:, 0]
    close(logp, want, "the log-probability is the one before any filter")
    _edge(choose)


def _interval(p: Tensor, number: float) -> int:
    """The slow way: add up until the sum is above the number."""
    total = 0.0
    for i, value in enumerate(p.double().tolist()):
        total += value
        if number < total:
            return i
    return len(p) - 1


def _edge(choose) -> None:  # type: ignore[no-untyped-def]
    """A number so near 1 that it lies above a rounded sum of probabilities."""
    near = torch.tensor([1 - 2**-24])
    for seed in range(40):
        torch.manual_seed(seed)
        logits = torch.randn(1, 4000)
        logits[0, -1] = -9.0  # top-k cuts the last token
        token, _ = choose(logits, Sampling(top_k=3000), near)
        expect(
            token.item() != 3999,
            "rounding: the last sum is a little below 1, a number above it points "
            "past the end; multiply the number by the last sum",
        )


def check_4_6(mine: ModuleType) -> None:
    found, reason = mine.FIRST_LOSS, mine.REASON
    given(found, reason)
    config = R1Config.preset("nano")
    measured = {}
    for std in (0.02, 0.2):
        losses = []
        for seed in range(4):
            torch.manual_seed(seed)
            model = R1Model(config.with_(initializer_range=std)).eval()
            ids = torch.randint(config.vocab_size, (4, 64))
            with torch.no_grad():
                logits = model(ids).logits[:, :-1].flatten(0, 1)
            losses.append(F.cross_entropy(logits, ids[:, 1:].flatten()).item())
        measured[std] = sum(losses) / 4
    nothing = math.log(config.vocab_size)
    expect(
        abs(found - nothing) > 0.2,
        "that is the logarithm of the vocabulary, the loss at a small std such as "
        "0.02; build the model with initializer_range=0.2",
    )
    full = nothing + config.hidden_size * 0.2**2
    expect(
        abs(found - full) > 0.2,
        "that adds the whole variance of the logits; half of it is added. Measure, "
        "then compare",
    )
    close(
        found,
        measured[0.2],
        "the mean over four seeds is another",
        atol=0.2,
    )
    expect(
        reason in ("depth", "head", "experts"), 'REASON: "depth", "head" or "experts"'
    )
    expect(
        reason != "depth",
        "build it with 2 layers: the loss stays. The final norm undoes any growth "
        "of the residual stream",
    )
    expect(
        reason != "experts",
        "build it dense (first_k_dense_replace=4): the loss stays where it is",
    )
