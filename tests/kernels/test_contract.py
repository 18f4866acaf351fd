"""What holds for every kernel: same bits twice, far-away rows, nothing at all."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable
from contextlib import nullcontext
from pathlib import Path

import pytest
import torch
from torch import Tensor

from r1lite.config import R1Config
from r1lite.kernels.attention import attention
from r1lite.kernels.dequant import dequant_mm
from r1lite.kernels.fp8 import act_quant, weight_dequant
from r1lite.kernels.fp8_gemm import fp8_mm
from r1lite.kernels.grouped import grouped_mm
from r1lite.kernels.logprobs import token_logprobs
from r1lite.kernels.mla_decode import mla_decode
from r1lite.kernels.norm import rms_norm
from r1lite.kernels.permute import permute, unpermute
from r1lite.kernels.rope import rope
from r1lite.kernels.router import route
from r1lite.kernels.swiglu import swiglu
from r1lite.kernels.workloads import workloads
from r1lite.precision.fp8 import quantise

pytestmark = pytest.mark.usefixtures("kernels_on")


def picks(rows: int) -> tuple[Tensor, Tensor]:
    order = torch.randperm(2 * rows)
    return order, order.argsort()


def trained() -> dict[str, tuple[Callable[..., Tensor], list[Tensor]]]:
    """Every operation with a gradient, more rows than one program takes."""
    order, place = picks(20)
    counts, starts = torch.tensor([3, 0, 37]), torch.tensor([0, 35, 40])
    angle, targets = torch.randn(1, 20, 4), torch.randint(30, (20,))
    x = torch.randn(20, 24)
    heads = [torch.randn(40, 2, 24), torch.randn(40, 1, 24), torch.randn(40, 1, 16)]
    codes, scales = torch.randint(-9, 9, (6, 24)).to(torch.int8), torch.rand(6, 1)
    return {
        "rms_norm": (lambda x, w: rms_norm(x, w, 1e-6), [x, torch.rand(24)]),
        "swiglu": (swiglu, [x, torch.randn(20, 24)]),
        "rope": (
            lambda q: rope(q, angle.cos(), angle.sin(), True),
            [torch.randn(2, 20, 3, 8)],
        ),
        "attention": (lambda *qkv: attention(*qkv, starts, 0.2), heads),
        "token_logprobs": (
            lambda h, w: token_logprobs(h, w, targets), [x, torch.randn(30, 24)],
        ),
        "router": (lambda z: route(z, None, 2).weights, [torch.randn(20, 8)]),
        "permute": (lambda x: permute(x, order, place, 2), [x]),
        "unpermute": (
            lambda d, w: unpermute(d, place, w),
            [torch.randn(40, 24), torch.rand(20, 2)],
        ),
        "grouped_mm": (
            lambda x, w: grouped_mm(x, w, counts),
            [torch.randn(40, 24), torch.randn(3, 10, 24)],
        ),
        "dequant_mm": (lambda x: dequant_mm(x, codes, scales), [x]),
    }  # fmt: skip


@pytest.mark.parametrize("name", list(trained()))
def test_backward_gives_the_same_bits_and_is_allowed_to(name: str) -> None:
    """No kernel adds floats in an order of chance: there is no faster, other mode.

    So the option that forbids one is accepted, and changes nothing.
    """
    torch.manual_seed(1)
    function, inputs = trained()[name]
    found = []
    for strict in (False, True, True):
        torch.use_deterministic_algorithms(strict)
        leaves = [x.clone().requires_grad_() for x in inputs]
        out = function(*leaves)
        slope = torch.linspace(-1, 1, out.numel()).view(out.shape)
        found.append([out.detach(), *torch.autograd.grad(out, leaves, slope)])
    for again in found[1:]:
        assert all(torch.equal(a, b) for a, b in zip(found[0], again, strict=True))
    assert all(g.abs().sum() > 0 for g in found[0])


def test_no_kernel_adds_floats_atomically() -> None:
    """The one atomic sum of the package counts tokens, which are whole numbers."""
    folder = Path(__file__).parents[2] / "r1lite" / "kernels"
    lines = [
        line.strip()
        for path in sorted(folder.glob("*.py"))
        for line in path.read_text().splitlines()
        if "tl.atomic" in line
    ]
    assert lines == ['tl.atomic_add(counts + chosen, 1, mask=mask, sem="relaxed")']


def test_every_op_of_the_package_is_measured_or_a_gradient() -> None:
    """A new op has to join the roofline and the benchmark."""
    config = R1Config.preset("nano")
    used = {w.op for w in workloads(config, 3, "meta", torch.float32)}
    defined = {n.split("::")[1] for n in torch._C._dispatch_get_all_op_names()
               if n.startswith("r1lite::")}  # fmt: skip
    assert used <= defined
    # The backward passes of a permutation and of the router, small as they are.
    assert defined - used == {"collect", "route_backward"}


def empties() -> dict[str, Callable[[], Tensor]]:
    none, angle = torch.zeros(0, 16), torch.zeros(1, 0, 4)
    index, starts = torch.zeros(0, dtype=torch.int64), torch.tensor([0])
    w8 = quantise(torch.randn(5, 16), (128, 128))
    pages = torch.randn(1, 4, 24)
    tables = torch.zeros(0, 1, dtype=torch.int32)
    codes, heads = torch.ones(5, 16, dtype=torch.int8), torch.zeros(0, 2, 16)
    return {
        "rms_norm": lambda: rms_norm(none, torch.ones(16), 1e-6),
        "swiglu": lambda: swiglu(none, none),
        "rope": lambda: rope(torch.zeros(1, 0, 2, 8), angle, angle, True),
        "attention": lambda: attention(heads, heads, heads, starts, 1.0),
        "mla_decode": lambda: mla_decode(
            torch.zeros(0, 2, 24), pages, tables, tables[:, 0], 16, 1.0
        ),
        "token_logprobs": lambda: token_logprobs(none, torch.ones(3, 16), index),
        "router": lambda: route(none, None, 2).weights,
        "permute": lambda: permute(none, index, index, 2),
        "unpermute": lambda: unpermute(none, index, torch.zeros(0, 2)),
        "grouped_mm": lambda: grouped_mm(
            none, torch.ones(3, 5, 16), index.new_zeros(3)
        ),
        "act_quant": lambda: act_quant(none)[0],
        "weight_dequant": lambda: weight_dequant(w8[0][:0], w8[1][:0]),
        "fp8_mm": lambda: fp8_mm(*act_quant(none), *w8),
        "dequant_mm": lambda: dequant_mm(none, codes, torch.ones(5, 1)),
    }


@pytest.mark.parametrize("name", list(empties()))
def test_no_row_at_all(name: str) -> None:
    assert empties()[name]().numel() == 0


def test_a_kernel_starts_on_the_device_of_its_tensors(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    asked: list[Tensor] = []

    def device_of(x: Tensor) -> nullcontext[None]:
        asked.append(x)
        return nullcontext()

    monkeypatch.setattr(torch.cuda, "device_of", device_of)
    x = torch.randn(3, 8)
    rms_norm(x, torch.ones(8), 1e-6)
    assert [t.data_ptr() for t in asked] == [x.data_ptr()]


def apart(x: Tensor) -> Tensor:
    """The same numbers, each beside one of another."""
    return torch.stack((x, x.flip(0)), -1)[:, 0]


def strided(lay: Callable[[Tensor], Tensor]) -> dict[str, Callable[[], Tensor]]:
    """Every flat argument that a kernel reads by its place in memory."""
    torch.manual_seed(0)
    x, w, bias = torch.randn(6, 16), torch.randn(3, 5, 16), torch.randn(16)
    order = torch.tensor([4, 0, 3, 5, 1, 2])
    place, given, counts = order.argsort(), torch.rand(3, 2), torch.tensor([1, 3, 2])
    heads, starts = x[:, None], torch.tensor([0, 2, 6])

    def back() -> Tensor:
        leaf = x[:3].clone().requires_grad_()
        (permute(leaf, order, lay(place), 2) * x).sum().backward()
        assert leaf.grad is not None
        return leaf.grad

    return {
        "rms_norm": lambda: rms_norm(x, lay(bias), 1e-6),
        "attention": lambda: attention(heads, heads, heads, lay(starts), 1.0),
        "token_logprobs": lambda: token_logprobs(x, x, lay(order)),
        "router": lambda: route(x, lay(bias), 2, 4, 2).weights,
        "permute": lambda: permute(x[:3], lay(order), place, 2),
        "permute, backward": back,
        "unpermute": lambda: unpermute(x, lay(place), given),
        "grouped_mm": lambda: grouped_mm(x, w, lay(counts)),
    }


@pytest.mark.parametrize("name", list(strided(apart)))
def test_numbers_that_lie_apart(name: str) -> None:
    assert torch.equal(strided(apart)[name](), strided(torch.clone)[name]())


FAR = '''
import torch
from r1lite.kernels.attention import attention
from r1lite.kernels.dequant import dequant_mm
from r1lite.kernels.fp8 import act_quant
from r1lite.kernels.grouped import grouped_mm
from r1lite.kernels.mla_decode import mla_decode
from r1lite.kernels.norm import rms_norm
from r1lite.kernels.permute import permute
from r1lite.kernels.rope import rope
from r1lite.kernels.router import route
from r1lite.kernels.swiglu import swiglu

def far(*shape, dtype=torch.float16):
    """Rows far apart, the last beyond 2^31: memory that hardly any row touches."""
    width, apart = torch.Size(shape[1:]).numel(), 2**32 // shape[0]
    x = torch.empty((shape[0] - 1) * apart + width, dtype=dtype)
    x = x.as_strided(shape, (apart, *torch.empty(shape[1:]).stride()))
    return x.copy_(torch.randint(-3, 4, shape))

def same(run, *tensors):
    near = run(*(t.contiguous() for t in tensors))
    assert torch.equal(run(*tensors), near), run

x, w = far(4, 32), torch.randn(2, 5, 32).half()
one = torch.ones(32).half()
order = torch.tensor([0, 3, 1, 2])
same(lambda x: rms_norm(x, one, 1e-6), x)
same(swiglu, x, far(4, 32))
same(lambda x: grouped_mm(x, w, torch.tensor([1, 3])), x)
same(lambda x: permute(x, order, order.argsort(), 1), x)
same(lambda x: act_quant(x)[0].view(torch.uint8), x)
same(lambda x: route(x, None, 2).weights, x)
for rows in (4, 260):
    starts = torch.tensor([0, rows])
    same(lambda q: attention(q, q, q, starts, 0.2), far(rows, 1, 16))
angle = torch.randn(1, 4, 8)
same(lambda q: rope(q[None], angle.cos(), angle.sin(), True), far(4, 1, 16))
tables, lengths = torch.tensor([[3, 0]]), torch.tensor([12])
query = torch.randn(1, 2, 24).half()
same(lambda c: mla_decode(query, c, tables.int(), lengths.int(), 16, 0.2, 1),
     far(4, 8, 24))
codes = far(4, 32, dtype=torch.int8)
for rows in (1, 3):
    same(lambda c: dequant_mm(x[:rows].contiguous(), c, torch.ones(4, 1)), codes)
print("same")
'''


def test_rows_beyond_2_to_the_31(tmp_path: Path) -> None:
    """32 bits would wrap: in a process of its own, which that would end."""
    done = subprocess.run(
        [sys.executable, "-c", FAR], capture_output=True, text=True, cwd=tmp_path
    )
    assert (done.stdout, done.returncode) == ("same\n", 0), done.stderr[-2000:]
