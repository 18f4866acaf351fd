"""What quant_table.py and quant_speed.py share: torchao, and the results' files."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

OUT = Path(__file__).parents[2] / "results" / "quantization"
# MLA reads kv_b_proj's weight itself when it decodes; torchao's tensors cannot be
# taken apart the way it does, so that this layer stays in float there.
FLOAT = ("lm_head", "eh_proj", "kv_b_proj")


def torchao_(model: nn.Module, scheme: str) -> int:
    """Quantise the nn.Linear layers with torchao; how many weights that were."""
    from torchao import quantization as ao

    configs: dict[str, Any] = {
        "int8": ao.Int8WeightOnlyConfig,
        "int8-dynamic": ao.Int8DynamicActivationInt8WeightConfig,
        "int4-g32": lambda: ao.IntxWeightOnlyConfig(
            torch.int4, granularity=ao.PerGroup(32)
        ),
    }

    def wanted(module: nn.Module, name: str) -> bool:
        return isinstance(module, nn.Linear) and not name.endswith(FLOAT)

    names = [n for n, m in model.named_modules() if wanted(m, n)]
    ao.quantize_(model, configs[scheme](), filter_fn=wanted)
    weights = [model.get_submodule(n).weight for n in names]
    return sum(w.numel() for w in weights)  # type: ignore[union-attr, misc, operator]


def torchao_bytes(model: nn.Module) -> tuple[int, int]:
    """Bytes of the whole model, and those of its quantised weights."""
    whole = covered = 0
    for p in {id(t): t for t in (*model.parameters(), *model.buffers())}.values():
        size = inner_bytes(p)
        whole += size
        covered += size if hasattr(p, "__tensor_flatten__") else 0
    return whole, covered


def inner_bytes(t: Tensor) -> int:
    """Bytes of a tensor, or of the tensors that a subclass is made of."""
    if not hasattr(t, "__tensor_flatten__"):
        return t.nbytes
    names, _ = t.__tensor_flatten__()
    return sum(inner_bytes(getattr(t, n)) for n in names)


def add(part: str, found: dict[str, Any]) -> None:
    """Keep one part of the results and write the table again."""
    OUT.mkdir(parents=True, exist_ok=True)
    file = OUT / "table.json"
    known = json.loads(file.read_text()) if file.exists() else {}
    known[part] = found
    file.write_text(json.dumps(known, indent=1, sort_keys=True) + "\n")
    (OUT / "table.md").write_text("\n".join(render(known)) + "\n")


def render(known: dict[str, Any]) -> list[str]:
    """table.md's lines."""
    lines = ["# Quantization, measured", ""]
    if nano := known.get("nano"):
        lines += _nano(nano)
    for part, title in (("experts", "One layer of experts"), ("linear", "Linear")):
        if part in known:
            lines += _speed(known[part], title)
    return lines


def _where(found: dict[str, Any]) -> str:
    m = found["machine"]
    return (
        f"{m['cpu']}, one thread, torch {m['torch']}, commit {m['commit']}, median of "
        f"{found['repeats']} turns."
    )


def _nano(found: dict[str, Any]) -> list[str]:
    lines = [
        "## The nano model (chapters/fixtures/nano/grpo)",
        "",
        "`python tests/benchmarks/quant_table.py`. " + _where(found),
        f"{found['problems']} test problems, {found['heldout_bytes']:,} bytes held "
        f"out, {found['calibration']['tokens']:,} tokens of calibration. Products are "
        "made in float32 unless the name says otherwise. Speed counts tokens: 4 x 128 "
        "at once (prefill), one after the other (decode).",
        "",
        "| | bytes | bits/weight | covered | bits/byte | right "
        "| prefill/s | decode/s |",
        "|---|---:|---:|---:|---:|---:|---:|---:|",
    ]
    lines += [
        f"| {r['name']} | {r['bytes']:,} | {r['bits']:.2f} | {r['coverage']:.1%} "
        f"| {r['bits_per_byte']:.4f} | {r['accuracy']:.1%} | {r['prefill']:,.0f} "
        f"| {r['decode']:,.0f} |"
        for r in found["rows"]
    ]
    rates = {r["name"]: (1 / r["prefill"], 1 / r["decode"]) for r in found["rows"]}
    return [*lines, "", *_plainly(rates), ""]


def _plainly(times: dict[str, tuple[float, float]]) -> list[str]:
    """What is not faster than float32, prefill and decode."""
    base = times["float32"]
    lines = []
    for i, what in enumerate(("prefill", "decode")):
        slow = [n for n, t in times.items() if t[i] >= base[i] and n != "float32"]
        lines.append(f"- Not faster than float32 in {what}: {', '.join(slow) or '-'}.")
    return lines


def _speed(found: dict[str, Any], title: str) -> list[str]:
    lines = [
        f"## {title}: {found['what']}",
        "",
        "`python tests/benchmarks/quant_speed.py`. " + _where(found),
        found["note"],
        "",
        "| | MB | decode ms | times float32 | bytes say | prefill ms | times float32 |",
        "|---|---:|---:|---:|---:|---:|---:|",
    ]
    base = found["rows"][0]
    lines += [
        f"| {r['name']} | {r['mb']:,.0f} | {r['decode_ms']:.2f} "
        f"| {base['decode_ms'] / r['decode_ms']:.2f} "
        f"| {base['mb'] / r.get('read_mb', r['mb']):.2f} "
        f"| {r['prefill_ms']:.1f} | {base['prefill_ms'] / r['prefill_ms']:.2f} |"
        for r in found["rows"]
    ]
    times = {r["name"]: (r["prefill_ms"], r["decode_ms"]) for r in found["rows"]}
    return [*lines, "", *_plainly(times), ""]
