"""Checks of chapter 5's exercises. They run the reader's file, nothing else."""

from types import ModuleType

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from r1lite.book.expect import close, expect, shape
from r1lite.memory.meter import SavedTensors
from r1lite.moe.experts import SwiGLU


def check_5_1(mine: ModuleType) -> None:
    found = mine.BYTES_KEPT
    if found is None:
        raise NotImplementedError
    hidden, inner, tokens = 320, 192, 512
    expert = SwiGLU(hidden, inner)
    with SavedTensors(expert) as meter:
        expert(torch.randn(tokens, hidden))
    unit = 4 * tokens
    slips = {
        meter.bytes // 4: "those are numbers; a float32 has four bytes",
        4 * (hidden + 4 * inner): "that is one token; there are 512",
        meter.bytes + unit * hidden: "the result of down, or x a second time, is "
        "counted: nobody in here needs the one, and the other is one tensor",
        meter.bytes - unit * inner: "one tensor of width 192 is missing: silu keeps "
        "its input, and its output is a factor of the product",
        meter.bytes
        - unit * hidden: "x is missing: the gradients of gate and up need it",
        meter.bytes + unit * 3 * hidden * inner // tokens: "weights do not count, they "
        "are there anyway",
    }
    expect(found not in slips, slips.get(found, ""))
    expect(
        found == meter.bytes,
        f"{found:,} is not it; list what gate, up, silu, the product and down need "
        "for their gradients, each tensor once",
    )


def check_5_2(mine: ModuleType) -> None:
    repeat = mine.repeat
    layer = nn.Sequential(nn.Linear(3, 5), nn.Tanh(), nn.Linear(5, 2))
    x, slope = torch.randn(4, 7, 3), torch.randn(4, 7, 2)
    dice = torch.get_rng_state()
    with torch.no_grad():
        shape(repeat(layer, x, dice, slope), x.shape, "the gradient of x")
    expect(
        all(p.grad is not None for p in layer.parameters()),
        "the parameters inside `run` got no gradient: use backward, which gives it "
        "to all of them, not autograd.grad for x alone",
    )
    want = _reference(layer, x, dice, slope)
    layer.zero_grad()
    close(
        repeat(layer, x, dice, slope),
        want[0],
        "the gradient of x is wrong: send `slope` back, not ones",
    )
    for p, right in zip(layer.parameters(), want[1], strict=True):
        close(p.grad, right, "a parameter's gradient is wrong")
    leaf = x.clone().requires_grad_()
    repeat(layer, leaf, dice, slope)
    expect(leaf.grad is None, "the caller's x has got a .grad: work on x.detach()")
    dropping = nn.Sequential(nn.Linear(3, 40), nn.Dropout(0.5), nn.Linear(40, 2))
    dice = torch.get_rng_state()
    torch.rand(5)  # the forward pass and others have thrown the dice since
    want = _reference(dropping, x, dice, slope)
    before = torch.get_rng_state()
    close(
        repeat(dropping, x, dice, slope),
        want[0],
        "with dropout the gradient is another network's: set the dice before you "
        "run again",
    )
    expect(
        torch.equal(torch.get_rng_state(), before),
        "the generator is not where it was before: whatever is random afterwards "
        "repeats itself; use torch.random.fork_rng(devices=[])",
    )


def _reference(
    run: nn.Module, x: Tensor, dice: Tensor, slope: Tensor
) -> tuple[Tensor, list[Tensor]]:
    """Without any checkpoint: the gradients of x and of the parameters."""
    source = x.clone().requires_grad_()
    with torch.random.fork_rng(devices=[]):
        torch.set_rng_state(dice)
        out = run(source)
    first, *rest = torch.autograd.grad(out, [source, *run.parameters()], slope)
    return first, rest


def check_5_3(mine: ModuleType) -> None:
    ids = torch.randint(9, (24,))
    logits = torch.randn(24, 9)

    def step(pieces: list[Tensor]) -> tuple[object, Tensor]:
        w = torch.zeros(9, requires_grad=True)

        def mean_loss(at: Tensor) -> Tensor:
            return F.cross_entropy(logits[at] + w, ids[at])

        found = mine.one_step(iter(pieces), mean_loss, len, 24)
        expect(
            w.grad is not None,
            "no gradient arrived: call backward for each micro-batch",
        )
        assert w.grad is not None
        return found, w.grad

    every = torch.arange(24)
    w = torch.zeros(9, requires_grad=True)
    whole = F.cross_entropy(logits + w, ids)
    (want,) = torch.autograd.grad(whole, w)
    found, grad = step([every])
    expect(isinstance(found, float), "return the mean loss as a float")
    close(grad, want, "already one batch in one piece gives another gradient")
    close(found, whole, "the mean loss of the step is wrong")
    found, grad = step(list(every.split(8)))
    close(
        grad,
        want,
        "three equal pieces: the gradients add up to more or less than one batch's; "
        "every micro-batch counts for trained / total",
    )
    found, grad = step(list(every.split([17, 1, 6])))
    close(
        grad,
        want,
        "pieces with 17, 1 and 6 trained tokens weigh alike; a piece counts for as "
        "many tokens as it holds",
    )
    close(found, whole, "the gradient is right, the returned mean is not")


def check_5_4(mine: ModuleType) -> None:
    round_tiles = mine.round_tiles
    x = torch.randn(6, 8)
    shape(round_tiles(x, 2, 4), (6, 8), "the rounded matrix")
    one = torch.tensor([[1.0, -3.0], [0.5, 0.25]])
    close(
        round_tiles(one, 2, 2),
        [[0.9643, -3.0], [0.4821, 0.2411]],
        "the largest *absolute* value belongs at 448: here -3, so the scale is 3 / 448",
        atol=1e-3,
    )
    zeros = round_tiles(torch.zeros(2, 4), 1, 4)
    expect(not zeros.isnan().any(), "a tile of zeros became NaN: its scale is 0, use 1")
    tall = torch.tensor([[448.0, 0.001], [0.002, 448.0]])
    close(
        round_tiles(tall, 1, 1),
        tall,
        "with tiles of one number nothing is lost: is the scale that of the tile?",
        atol=1e-4,
    )
    two = torch.tensor([[448.0, 448.0], [0.003, 0.003]])
    close(
        round_tiles(two, 1, 2),
        two,
        "high and wide are the other way round: 1 x 2 keeps two rows apart",
        atol=1e-4,
    )
    ragged = torch.randn(5, 7) * 10 ** torch.randn(5, 7)
    found = round_tiles(ragged, 2, 3)
    shape(found, (5, 7), "sizes that tiles do not divide: the rounded matrix")
    worst = ((found - ragged).abs() / ragged.abs().amax(1, keepdim=True)).max()
    expect(worst < 0.1, "the last tiles, which are smaller, are wrong")
    close(found, _rounded(ragged, 2, 3), "the codes differ from E4M3's", atol=1e-4)


def _rounded(x: Tensor, high: int, wide: int) -> Tensor:
    """Number by number, with its tile found again for each."""
    codes = torch.arange(256, dtype=torch.uint8).view(torch.float8_e4m3fn).float()
    codes = codes[~codes.isnan()].double()
    out = torch.zeros_like(x)
    for i in range(x.shape[0]):
        for j in range(x.shape[1]):
            top, left = i // high * high, j // wide * wide
            scale = x[top : top + high, left : left + wide].abs().max() / 448
            nearest = (codes - (x[i, j] / scale).double()).abs().argmin()
            out[i, j] = codes[nearest] * scale
    return out


def check_5_5(mine: ModuleType) -> None:
    backward = mine.fp8_backward
    dy, x, w = torch.randn(6, 4), torch.randn(6, 5), torch.randn(4, 5)

    def same(a: Tensor) -> Tensor:
        return a

    pair = backward(dy, x, w, same, same)
    expect(
        isinstance(pair, tuple) and len(pair) == 2, "return dx and dw, in this order"
    )
    shape(pair[0], (6, 5), "dx")
    shape(pair[1], (4, 5), "dw")
    close(pair[0], dy @ w, "without any rounding dx is dy w")
    close(pair[1], dy.t() @ x, "without any rounding dw is dy^T x")
    zero = torch.zeros_like
    dx, dw = backward(dy, x, w, same, zero)
    expect(not dx.any(), "dx multiplies with the rounded weight: blocks(w)")
    close(dw, dy.t() @ x, "dw contains no weight: blocks has no business there")
    dx, dw = backward(dy, x, w, zero, same)
    expect(not dx.any(), "dx multiplies with the rounded gradient: rows(dy)")

    def largest(a: Tensor) -> Tensor:  # shows along what was rounded
        return a * a.abs().amax(-1, keepdim=True)

    dx, _ = backward(dy, x, w, largest, same)
    close(
        dx,
        (dy * dy.abs().amax(1, keepdim=True)) @ w,
        "dx sums over the outputs, so dy is rounded along them: rows(dy)",
    )

    def only_x(a: Tensor) -> Tensor:
        return largest(a) if 5 in a.shape else a

    def only_dy(a: Tensor) -> Tensor:
        return largest(a) if 4 in a.shape else a

    _, dw = backward(dy, x, w, only_x, same)
    right = x * x.abs().amax(0, keepdim=True)
    expect((dw - dy.t() @ x).abs().max() > 1e-4, "x goes into dw without being rounded")
    close(dw, dy.t() @ right, "dw sums over the tokens: round x along them, by x.t()")
    _, dw = backward(dy, x, w, only_dy, same)
    right = dy * dy.abs().amax(0, keepdim=True)
    expect(
        (dw - dy.t() @ x).abs().max() > 1e-4, "dy goes into dw without being rounded"
    )
    close(dw, right.t() @ x, "dw sums over the tokens: round dy along them, by dy.t()")


def check_5_6(mine: ModuleType) -> None:
    power, why = mine.FIRST_POWER, mine.WHY
    if power is None or why is None:
        raise NotImplementedError
    x, first = torch.randn(64, 256), 2
    while True:
        x[0, 0] = 10.0**first
        scale = x[0, 0] / 57344
        back = (x / scale).to(torch.float8_e5m2).float() * scale
        if (back - x)[1:].norm() > 0.1 * x[1:].norm():
            break
        first += 1
    expect(power != 5, "5 is E4M3's; cast to torch.float8_e5m2")
    expect(
        power != first - 1,
        "at that outlier the others only begin to suffer: their error is below 0.1",
    )
    expect(power == first, f"the error passes 0.1 at another power than {power}")
    expect(
        why != "step",
        "wider steps would hurt at every outlier; the error stays at 0.05 over nine "
        "powers of ten",
    )
    expect(why != "overflow", "the outlier is put at 57344, which E5M2 still holds")
    expect(why == "range", 'WHY is one of "step", "range", "overflow"')
