"""Checks of chapter 03's exercises. They run the reader's file, nothing else."""

from types import ModuleType

import torch
from torch import Tensor

from r1lite.attention.cache import LatentCache
from r1lite.attention.mla import MLA
from r1lite.attention.norm import RMSNorm
from r1lite.attention.rope import Rope, frequencies
from r1lite.book.expect import close, expect, given, shape
from r1lite.config import R1Config

NANO = R1Config.preset("nano")
# No two sizes alike, so that a swapped dimension shows.
ODD = NANO.with_(
    hidden_size=20,
    num_attention_heads=3,
    kv_lora_rank=7,
    qk_nope_head_dim=5,
    qk_rope_head_dim=4,
    v_head_dim=6,
)


# 3.1


def check_3_1(mine: ModuleType) -> None:
    latent, whole = mine.LATENT_BYTES, mine.FULL_BYTES
    given(latent, whole)
    slips = {
        3456: "that many numbers; a number has 2 bytes",
        576: "that is one layer; there are 12",
        6144: "the rotated key of 32 is kept beside the latent",
        13824: "one latent serves for keys and values; do not count it twice",
        82944: "the latent and the rotated key are shared by all heads",
    }
    for wrong, why in slips.items():
        expect(latent != wrong, f"LATENT_BYTES: {why}")
    cache = LatentCache(R1Config.preset("small"), 1, 1, torch.bfloat16)
    expect(
        latent == cache.bytes_per_token(),
        "LATENT_BYTES: layers * (latent + rotated key) * 2 bytes",
    )
    slips = {
        23040: "that many numbers; a number has 2 bytes",
        36864: "a key has a rotated part of 32 too",
        3840: "every one of the 12 heads keeps its own",
        27648: "the value of 64 is kept beside the key",
    }
    for wrong, why in slips.items():
        expect(whole != wrong, f"FULL_BYTES: {why}")
    expect(whole == 46080, "FULL_BYTES: layers * heads * (key + value) * 2 bytes")


# 3.2


def slow_rotate(x: Tensor, cos: Tensor, sin: Tensor, interleave: bool) -> Tensor:
    """Pairs as complex numbers, one by one; x: (d,)."""
    half, out = len(x) // 2, torch.zeros_like(x)
    for i in range(half):
        a, b = (2 * i, 2 * i + 1) if interleave else (i, i + half)
        z = complex(x[a], x[b]) * complex(cos[i], sin[i])
        out[i], out[i + half] = z.real, z.imag
    return out


def check_3_2(mine: ModuleType) -> None:
    x = torch.tensor([1.0, 2.0, 3.0, 4.0])
    cos, sin = torch.tensor([0.0, 1.0]), torch.tensor([1.0, 0.0])  # 90°, 0°
    got = mine.rotate(x, cos, sin, False)
    shape(got, (4,), "rotate")
    some = torch.tensor([0.3, 2.0])
    length = mine.rotate(x, some.cos(), some.sin(), False).norm()
    close(length, x.norm(), "a turned vector keeps its length; look at the signs")
    expect(
        not torch.allclose(got, torch.tensor([3.0, 2.0, -1.0, 4.0])),
        "it turns backwards: (1, 0) by 90° must become (0, 1)",
    )
    close(got, [-3.0, 2.0, 1.0, 4.0], "halves: pair 0 is (x[0], x[d/2])")
    got = mine.rotate(x, cos, sin, True)
    expect(
        not torch.allclose(got, torch.tensor([-2.0, 1.0, 3.0, 4.0])),
        "interleaved: right pairs, but written back in pairs; write all a, then all b",
    )
    close(got, [-2.0, 3.0, 1.0, 4.0], "interleaved: pair 0 is (x[0], x[1])")
    expect(torch.equal(x, torch.arange(1.0, 5.0)), "x was written into; make a new one")
    x = torch.randn(2, 5, 3, 8, requires_grad=True)  # batch, seq, heads, d
    angle = torch.randn(2, 5, 1, 4)
    for interleave in (True, False):
        got = mine.rotate(x, angle.cos(), angle.sin(), interleave)
        shape(got, (2, 5, 3, 8), "rotate with heads")
        for b, t, h in ((0, 0, 0), (1, 4, 2), (0, 3, 1)):
            a = angle[b, t, 0]
            want = slow_rotate(x[b, t, h].detach(), a.cos(), a.sin(), interleave)
            close(got[b, t, h], want, "not the complex product of each pair")
        (grad,) = torch.autograd.grad(got.square().sum(), x)
        close(grad, 2 * x, "gradients do not flow as through a rotation", 1e-4)


# 3.3


def check_3_3(mine: ModuleType) -> None:
    norm = RMSNorm(2, eps=0.5)
    got = mine.forward(norm, torch.tensor([[3.0, 4.0]]))
    shape(got, (1, 2), "forward")
    small = torch.tensor([[0.1, 0.3]])  # mean of squares 0.05, eps 0.5
    got = mine.forward(norm, small)
    slips = {
        0.05**0.5: "eps has no effect; on small inputs it decides",
        0.05**0.5 + 0.5: "eps stands outside the root; it belongs beside the mean",
        (0.1 + 0.5) ** 0.5: "sum of the squares; take their mean",
    }
    for root, why in slips.items():
        expect(not torch.allclose(got, small / root, atol=1e-4), why)
    apart = (small - small.mean()) / (small.var(unbiased=False) + 0.5).sqrt()
    centred = (small - small.mean()) / (0.05 + 0.5) ** 0.5
    for wrong in (apart, centred):
        expect(
            not torch.allclose(got, wrong, atol=1e-4),
            "the mean is subtracted; RMSNorm does not centre",
        )
    close(got, small / 0.55**0.5, "x / sqrt(mean(x^2) + eps)")
    zeros = mine.forward(RMSNorm(3), torch.zeros(2, 3))
    close(zeros, torch.zeros(2, 3), "zeros must stay zeros, not NaN")
    norm = RMSNorm(6, eps=0.01)
    torch.nn.init.normal_(norm.weight)
    x = torch.randn(2, 3, 6, requires_grad=True)
    want = x / (x.square().mean(-1, keepdim=True) + 0.01).sqrt()
    got = mine.forward(norm, x)
    expect(not torch.allclose(got, want, atol=1e-4), "self.weight is not applied")
    close(got, want * norm.weight, "each of the rows (..., size) has its own mean")
    check_gradients(got, want * norm.weight, x, norm)
    norm = RMSNorm(4096).to(torch.bfloat16)
    x = (1 + torch.rand(1, 4096)).to(torch.bfloat16)
    got = mine.forward(norm, x)
    expect(got.dtype == torch.bfloat16, "the result must have x's dtype, bfloat16")
    wide = x.float()
    want = (wide / (wide.square().mean(-1, keepdim=True) + 1e-6).sqrt()).bfloat16()
    same = (got == want).float().mean()
    expect(same > 0.99, "bfloat16: take the mean in float32, x.float() first")


def check_gradients(got: Tensor, want: Tensor, x: Tensor, norm: RMSNorm) -> None:
    """The same gradients for the input and the weight."""
    weights = torch.randn_like(want)
    for tensor, name in ((x, "x"), (norm.weight, "the weight")):
        theirs = torch.autograd.grad((want * weights).sum(), tensor, retain_graph=True)
        ours = torch.autograd.grad(
            (got * weights).sum(), tensor, retain_graph=True, allow_unused=True
        )
        expect(ours[0] is not None, f"no gradient reaches {name}; do not detach")
        close(ours[0], theirs[0], f"the gradient of {name} is another", 1e-4)


# 3.4


def decode_inputs(kv: int, batch: int = 2) -> tuple[MLA, Tensor, Tensor, Tensor]:
    """A layer with odd sizes, a query in two parts, and a cache."""
    layer = MLA(ODD, 0)
    q_nope = torch.randn(batch, 1, 3, 5)
    q_rope = torch.randn(batch, 1, 3, 4)
    return layer, q_nope, q_rope, torch.randn(batch, kv, 7 + 4)


@torch.no_grad()
def slow_absorbed(
    m: MLA, q_nope: Tensor, q_rope: Tensor, past: Tensor, mask: Tensor | None
) -> Tensor:
    """Makes every head's keys and values, one query at a time."""
    batch, kv = past.shape[:2]
    made = m.kv_b_proj(past[..., : m.rank]).view(batch, kv, m.heads, m.nope + m.v)
    out = torch.zeros(batch, 1, m.heads * m.v)
    for b in range(batch):
        for h in range(m.heads):
            scores = made[b, :, h, : m.nope] @ q_nope[b, 0, h]
            scores = scores + past[b, :, m.rank :] @ q_rope[b, 0, h]
            scores = scores * m.scale
            if mask is not None:
                scores = scores + mask.expand(batch, 1, 1, kv)[b, 0, 0]
            value = made[b, :, h, m.nope :]
            out[b, 0, h * m.v : (h + 1) * m.v] = scores.softmax(0) @ value
    return out


def check_3_4(mine: ModuleType) -> None:
    layer, q_nope, q_rope, past = decode_inputs(kv=1)
    got = mine.absorbed(layer, q_nope, q_rope, past, None)
    shape(got, (2, 1, 3 * 6), "absorbed")
    want = slow_absorbed(layer, q_nope, q_rope, past, None)
    close(
        got,
        want,
        "one cached token: the output must be its values, W_v times the latent, head "
        "by head; each head's rows of the weight are its nope rows, then its v rows",
    )
    layer, q_nope, q_rope, past = decode_inputs(kv=6)
    zero = torch.zeros_like(q_rope)
    close(
        mine.absorbed(layer, 3 * q_nope, zero, past, None),
        slow_absorbed(layer, 3 * q_nope, zero, past, None),
        "without the rotated part: look at the fold of W_k into the query, and at "
        "self.scale on the scores",
    )
    close(
        mine.absorbed(layer, 0 * q_nope, 3 * q_rope, past, None),
        slow_absorbed(layer, 0 * q_nope, 3 * q_rope, past, None),
        "the rotated part: q_rope times the shared key, scaled like the rest",
    )
    mask = torch.zeros(2, 1, 1, 6)
    mask[0, ..., :2] = -torch.inf
    mask[1, ..., 3] = -torch.inf
    close(
        mine.absorbed(layer, q_nope, q_rope, past, mask),
        slow_absorbed(layer, q_nope, q_rope, past, mask),
        "the mask (batch, 1, 1, kv): add it to the scores, each row its own",
    )
    layer, q_nope, q_rope, past = decode_inputs(kv=9, batch=4)
    got = mine.absorbed(layer, q_nope, q_rope, past, None)
    want = slow_absorbed(layer, q_nope, q_rope, past, None)
    close(got, want, "not what expanding the latents gives")
    expect(got.requires_grad, "no gradient reaches the weights; do not detach")


# 3.5


@torch.no_grad()
def check_3_5(mine: ModuleType) -> None:
    layer, rope = MLA(ODD, 0), Rope(ODD)
    x = torch.randn(2, 9, 20)
    want = layer(x, rope(torch.arange(9).unsqueeze(0), x.dtype))
    cache = LatentCache(ODD, 2, 9)
    first = mine.read(layer, rope, x[:, :4], cache)
    shape(first, (2, 4, 20), "read")
    expect(
        cache.length > 0, "cache.length is still 0: a token counts after cache.advance"
    )
    expect(cache.length == 4, f"4 tokens read, the cache counts {cache.length}")
    close(first, want[:, :4], "the first message is wrong already; it was right before")
    second = mine.read(layer, rope, x[:, 4:], cache)
    close(
        second,
        want[:, 4:],
        "the second message: its tokens do not stand where the cached sequence "
        "ends; which position does `rope` get?",
    )


# 3.6


def check_3_6(mine: ModuleType) -> None:
    same, whole, why = mine.KEPT, mine.DIVIDED, mine.WHY
    given(same, whole, why)
    config = R1Config.preset("1b")
    yarn = {"type": "yarn", "factor": 8, "original_max_position_embeddings": 4096}
    plain, _ = frequencies(config)
    ratio = plain / frequencies(config.with_(rope_scaling=yarn))[0]
    kept, divided = int((ratio < 1.001).sum()), int((ratio > 7.99).sum())
    ramp = len(ratio) - kept - divided
    expect(
        (same, whole) != (divided, kept),
        "KEPT and DIVIDED are exchanged: the fast pairs, with small i, are kept",
    )
    expect(same != kept + ramp, "KEPT: the ramp's pairs are changed too")
    expect(same == kept, "KEPT: count the pairs whose ratio plain / YaRN is 1")
    expect(whole != divided + ramp, f"DIVIDED: {ramp} of these are only on the ramp")
    expect(whole == divided, "DIVIDED: count the pairs whose ratio is 8")
    slips = {
        "a": "a smaller speed overflows nothing",
        "c": "that is true of the slow pairs, and why those are divided",
        "d": "without them the layer could not name the place just before",
    }
    expect(why not in slips, f"WHY: {slips.get(why)}")
    expect(why == "b", 'WHY: answer "a", "b", "c" or "d"')
