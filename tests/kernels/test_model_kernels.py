"""With interpreted kernels the model computes, learns and writes the same."""

from __future__ import annotations

import os
import subprocess
import sys
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import r1lite.hot as hot_module
from r1lite.attention.cache import LatentCache
from r1lite.attention.mask import additive_mask
from r1lite.config import R1Config
from r1lite.data.packing import Rows
from r1lite.generation import Sampling, sample
from r1lite.kernels import attention_kernels, grouped
from r1lite.kernels import model as use
from r1lite.loss import head_loss
from r1lite.memory.recompute import checkpoint_blocks_
from r1lite.model import R1Model
from r1lite.moe.dispatch import dispatch_local
from r1lite.moe.layer import MoE
from r1lite.precision.amp import autocast, mixed_precision_
from r1lite.training.loop import Run
from r1lite.training.metrics import MetricsLog, read
from r1lite.training.optim import OptimConfig
from r1lite.training.pretrain import PretrainConfig, pretrain

TINY = R1Config.preset("nano").with_(
    vocab_size=60,
    hidden_size=16,
    intermediate_size=24,
    num_hidden_layers=2,
    num_attention_heads=2,
    n_routed_experts=4,
    moe_intermediate_size=8,
    num_nextn_predict_layers=0,
    initializer_range=0.2,
)


def switch(monkeypatch: pytest.MonkeyPatch, choice: str) -> Counter[str]:
    """As if Python had started with R1LITE_KERNELS; counts what kernels computed."""
    used: Counter[str] = Counter()

    def counted(name: str, kernel: Any) -> Any:
        def call(*args: Any, **kwargs: Any) -> Any:
            used[name] += 1
            return kernel(*args, **kwargs)

        return call

    monkeypatch.setattr(hot_module, "by_hand", True)
    monkeypatch.setenv("R1LITE_KERNELS", choice)
    counting = {name: counted(name, k) for name, k in use.KERNELS.items()}
    monkeypatch.setattr(use, "KERNELS", counting)
    return used


def tiny(**changes: Any) -> R1Model:
    torch.manual_seed(0)
    return R1Model(TINY.with_(**changes))


class Documents:
    """Rows of two documents each, the same at every reading."""

    def rows(self, first: int, count: int) -> Rows:
        torch.manual_seed(first)
        ids = torch.randint(60, (count, 8))
        documents = torch.tensor([[0] * 3 + [1] * 5]).expand(count, -1)
        return Rows(ids, documents, torch.arange(8).expand(count, -1))


def three_steps(folder: Path) -> tuple[list[float], R1Model]:
    """Nano's widths, layers, experts, MTP module and optimizer; short rows."""
    folder.mkdir()
    torch.manual_seed(0)
    model = R1Model(R1Config.preset("nano").with_(vocab_size=60))
    run = Run(folder, 0, MetricsLog(folder, tensorboard=False), progress=False)
    config = PretrainConfig(
        steps=3, batch_size=1, seq_len=7, document_mask=True, optim=OptimConfig()
    )
    pretrain(run, model, config, Documents())
    return [row["loss"] for row in read(folder / "metrics.jsonl")], model


@pytest.mark.timeout(300)
def test_three_steps_of_nano_learn_the_same(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    wanted, theirs = three_steps(tmp_path / "references")
    used = switch(monkeypatch, "triton")
    found, mine = three_steps(tmp_path / "kernels")
    assert len(found) == len(wanted) == 3
    assert wanted[0] != wanted[2]  # something was learnt
    assert found == pytest.approx(wanted, abs=1e-4)
    for (name, a), b in zip(mine.named_parameters(), theirs.parameters(), strict=True):
        torch.testing.assert_close(a, b, atol=1e-4, rtol=1e-4, msg=name)
    assert set(used) == set(use.KERNELS) - {"looped"}  # nano's widths are round


@pytest.mark.parametrize("choice", ["off", "reference", "auto"])
def test_the_other_choices_use_no_kernel_on_a_cpu(
    choice: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    ids, model = torch.randint(60, (2, 7)), tiny()
    wanted = model(ids).logits
    used = switch(monkeypatch, choice)
    assert torch.equal(model(ids).logits, wanted)
    assert not used


def test_an_unknown_choice_is_refused_by_the_first_operation() -> None:
    code = (
        "import torch, r1lite\n"
        "model = r1lite.R1Model(r1lite.R1Config.preset('nano'))\n"
        "try: model(torch.tensor([[1, 2]]))\n"
        "except r1lite.R1Error as e: print(e)"
    )
    env = {**os.environ, "R1LITE_KERNELS": "fast"}
    done = subprocess.run(
        [sys.executable, "-c", code], env=env, capture_output=True, text=True
    )
    assert done.stdout.startswith("R1LITE_KERNELS: 'fast' is unknown; set it to auto")


def test_it_writes_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    model = tiny(moe_intermediate_size=6).eval()  # a width grouped_mm refuses
    prompts = [[1, 2, 3], [4, 5, 6, 7, 8]]  # padded: attention has to fall back
    how = Sampling(max_new_tokens=4, temperature=0.0)
    wanted = sample(model, prompts, how), sample(model, prompts[:1], how)
    used = switch(monkeypatch, "triton")
    found = sample(model, prompts, how), sample(model, prompts[:1], how)
    for mine, theirs in zip(found, wanted, strict=True):
        assert mine.tokens == theirs.tokens
        torch.testing.assert_close(
            torch.tensor(mine.logprobs), torch.tensor(theirs.logprobs)
        )
    assert used["looped"]


def masks() -> dict[str, dict[str, Tensor]]:
    real = torch.tensor([[False, False, *[True] * 6], [True] * 8])
    packed = torch.tensor([[3, 3, 3, 4, 4, 4, 4, -1], [0, 1, 1, 1, 1, 1, 1, 1]])
    torn = torch.tensor([[0, 0, 1, 1, 0, 0, 2, 2], [0] * 8])
    return {
        "none": {},
        "documents": {"document_ids": packed},
        "a document in two pieces": {"document_ids": torn},
        "padding": {"attention_mask": real},
        "both": {"attention_mask": real, "document_ids": packed},
    }


@pytest.mark.parametrize("name", list(masks()))
def test_every_mask(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    given, model, ids = masks()[name], tiny(), torch.randint(60, (2, 8))
    wanted = model.hidden(ids, **given)
    switch(monkeypatch, "triton")
    torch.testing.assert_close(model.hidden(ids, **given), wanted, atol=1e-5, rtol=1e-5)
    edges = isinstance(_mask_of(ids, given), use.Packed)
    assert edges == (name == "documents")  # the others fall back


def _mask_of(ids: Tensor, given: dict[str, Tensor]) -> Any:
    where = (given.get(k) for k in ("attention_mask", "document_ids"))
    return additive_mask(8, 8, *where, torch.zeros(1))


def test_a_prompt_of_one_token_with_documents_and_a_cache(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    model, ids, one = tiny().eval(), torch.tensor([[7]]), torch.tensor([[0]])

    def first() -> Tensor:
        cache = LatentCache(TINY, 1, 4)
        return model(ids, document_ids=one, cache=cache).logits

    wanted = first()
    switch(monkeypatch, "triton")
    torch.testing.assert_close(first(), wanted, atol=1e-5, rtol=1e-5)


def test_dropout_falls_back_with_the_documents_mask(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    model, ids = tiny(attention_dropout=0.5).train(), torch.randint(60, (2, 8))
    torch.manual_seed(1)
    wanted = model.hidden(ids, **masks()["documents"])
    switch(monkeypatch, "triton")
    torch.manual_seed(1)
    found = model.hidden(ids, **masks()["documents"])
    torch.testing.assert_close(found, wanted, atol=1e-5, rtol=1e-5)


def test_float64_stays_with_the_references(monkeypatch: pytest.MonkeyPatch) -> None:
    model = tiny(first_k_dense_replace=2).double()  # torch has no grouped_mm for it
    ids = torch.randint(60, (1, 5))
    wanted = model(ids).logits
    used = switch(monkeypatch, "triton")
    assert torch.equal(model(ids).logits, wanted)
    assert not used


class Grown(nn.Linear):
    """A head that does more than its weight says, as FSDP's and LoRA's do."""

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x) + 1.5 * x.sum(-1, keepdim=True)


@pytest.mark.parametrize("head", [nn.Linear(8, 20), Grown(8, 20, bias=False)])
def test_a_head_of_another_kind_is_called(
    head: nn.Module, monkeypatch: pytest.MonkeyPatch
) -> None:
    hidden, targets = torch.randn(5, 8), torch.randint(20, (5,))
    wanted = head_loss(hidden, head, targets)
    switch(monkeypatch, "triton")
    assert torch.equal(head_loss(hidden, head, targets), wanted)


@pytest.mark.parametrize("hook", ["forward_hook", "forward_pre_hook"])
def test_a_head_that_someone_listens_to_is_called(
    hook: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    head, hidden = nn.Linear(8, 20, bias=False), torch.randn(5, 8)
    heard: list[int] = []
    getattr(head, f"register_{hook}")(lambda *given: heard.append(1))
    switch(monkeypatch, "triton")
    head_loss(hidden, head, torch.randint(20, (5,)))
    assert heard == [1]


@pytest.mark.parametrize("hook", ["forward_hook", "forward_pre_hook"])
def test_a_router_that_someone_listens_to_is_called(
    hook: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    layer = MoE(TINY)
    heard: list[int] = []
    getattr(layer.gate, f"register_{hook}")(lambda *given: heard.append(1))
    switch(monkeypatch, "triton")
    layer(torch.randn(1, 3, 16))
    assert heard == [1]


def test_experts_under_autocast_give_back_the_type_they_got(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    layer = MoE(TINY)
    mixed_precision_(layer)
    x = torch.randn(5, 16)
    switch(monkeypatch, "triton")
    with autocast("cpu", torch.float16):
        routing = layer.route(x)
        assert dispatch_local(x, routing, layer.experts).dtype == torch.float32


@pytest.mark.parametrize("reduction", ["mean", "sum", "none"])
def test_the_loss_without_logits(
    reduction: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    head, targets = nn.Linear(8, 20, bias=False), torch.randint(20, (5,))
    hidden = torch.randn(5, 8)
    wanted = head_loss(hidden, head, targets, reduction, 0.7)
    used = switch(monkeypatch, "triton")
    found = head_loss(hidden, head, targets, reduction, 0.7)
    torch.testing.assert_close(found, wanted)
    assert used["head_loss"] == 1


def gradients(model: R1Model, ids: Tensor, dtype: torch.dtype) -> list[Tensor]:
    with autocast("cpu", dtype):
        hidden = model.hidden(ids, document_ids=masks()["documents"]["document_ids"])
        loss = head_loss(hidden.flatten(0, 1), model.lm_head, ids.flatten())
    return list(torch.autograd.grad(loss, list(model.parameters())))


@pytest.mark.parametrize("policy", ["none", "block", "selective"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
def test_recomputation_and_autocast(
    policy: str, dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch
) -> None:
    """float16, since the interpreter rounds bfloat16 wrongly."""
    model, ids = tiny().train(), torch.randint(60, (2, 8))
    checkpoint_blocks_(model, policy)
    if dtype != torch.float32:
        mixed_precision_(model)
    wanted = gradients(model, ids, torch.float32)
    switch(monkeypatch, "triton")
    found = gradients(model, ids, dtype)
    tol = 1e-5 if dtype == torch.float32 else 2e-2
    for mine, theirs in zip(found, wanted, strict=True):
        torch.testing.assert_close(mine, theirs, atol=tol, rtol=tol)


class Launched:
    """A kernel that counts how often it starts."""

    def __init__(self, kernel: Any) -> None:
        self.kernel, self.times = kernel, 0

    def __getitem__(self, grid: Any) -> Any:
        self.times += 1
        return self.kernel[grid]


@pytest.mark.parametrize(
    ("policy", "attentions", "products"),
    [("none", 2, 4), ("selective", 2, 4), ("block", 4, 6)],
)
def test_selective_recomputation_keeps_what_the_kernels_multiplied(
    policy: str, attentions: int, products: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Attention of two layers; two products of one MoE layer, and two backward."""
    forward = Launched(attention_kernels.forward)
    product = Launched(grouped._product)
    monkeypatch.setattr(attention_kernels, "forward", forward)
    monkeypatch.setattr(grouped, "_product", product)
    switch(monkeypatch, "triton")
    model = tiny().train()
    checkpoint_blocks_(model, policy)
    model(torch.randint(60, (1, 6))).logits.sum().backward()
    assert (forward.times, product.times) == (attentions, products)


COMPILED = """
import torch
import r1lite
import r1lite.hot
from r1lite.kernels import model as use

torch.manual_seed(0)
config = r1lite.R1Config.preset("nano").with_(
    vocab_size=60, hidden_size=16, num_hidden_layers=2, first_k_dense_replace=2,
    num_attention_heads=2, num_nextn_predict_layers=0, initializer_range=0.2)
model = r1lite.R1Model(config)
ids = torch.randint(60, (1, 6))
r1lite.hot.by_hand = False
wanted = model(ids).logits
r1lite.hot.by_hand = True
used, kernel = [], use.KERNELS["MLA._expanded"]
use.KERNELS["MLA._expanded"] = lambda *given: used.append(1) or kernel(*given)
compiled = torch.compile(model, backend="aot_eager", fullgraph=True)
torch.testing.assert_close(compiled(ids).logits, wanted, atol=1e-5, rtol=1e-5)
print("kernels used:", len(used))
"""


def test_compile_traces_through_the_kernels() -> None:
    """In a process of its own: what Dynamo knows outlives the test that taught it."""
    env = {**os.environ, "R1LITE_KERNELS": "triton", "TRITON_INTERPRET": "1"}
    done = subprocess.run(
        [sys.executable, "-c", COMPILED], env=env, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr[-2000:]
    assert done.stdout == "kernels used: 2\n"
