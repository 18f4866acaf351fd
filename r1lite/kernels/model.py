"""The model's use of the kernels: what stands in for each operation marked `@hot`.

`r1lite.hot` calls `compute` for a tensor on a GPU. Each function below takes the
operation itself first and falls back on it for what its kernel cannot take: a padding
mask, a cache that goes on after a prompt, dropout, a head that is not a plain matrix.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from r1lite.attention.mla import MLA
from r1lite.attention.norm import RMSNorm
from r1lite.kernels.attention import attention
from r1lite.kernels.choose import use_triton
from r1lite.kernels.grouped import grouped_mm
from r1lite.kernels.logprobs import token_logprobs
from r1lite.kernels.norm import rms_norm
from r1lite.kernels.permute import permute, unpermute
from r1lite.kernels.rope import rope
from r1lite.kernels.router import route
from r1lite.kernels.swiglu import swiglu
from r1lite.moe.experts import Experts, SwiGLU
from r1lite.moe.gating import Router, Routing
from r1lite.moe.layer import MoE

# Sums inside a kernel are float32: float64 would be promised and not kept.
DTYPES = (torch.float32, torch.bfloat16, torch.float16)

Operation = Callable[..., Any]


def compute(name: str, operation: Operation, *args: Any, **kwargs: Any) -> Any:
    """What `operation` computes, by the kernel for `name` if it takes these tensors.

    Raises:
        R1Error: R1LITE_KERNELS is unknown, or asks for what cannot run here.
    """
    x = next(a for a in args if isinstance(a, Tensor) and a.is_floating_point())
    kernel = KERNELS.get(name)
    if kernel is None or not use_triton(x) or x.dtype not in DTYPES:
        return operation(*args, **kwargs)
    return kernel(operation, *args, **kwargs)


def _norm(plain: Operation, norm: RMSNorm, x: Tensor) -> Tensor:
    return rms_norm(x, norm.weight, norm.eps)


def _mlp(plain: Operation, mlp: SwiGLU, x: Tensor) -> Tensor:
    y: Tensor = mlp.down_proj(swiglu(mlp.gate_proj(x), mlp.up_proj(x)))
    return y


def _rotate(
    plain: Operation, x: Tensor, cos: Tensor, sin: Tensor, interleave: bool
) -> Tensor:
    """Queries (batch, seq, heads, dim), or (batch, seq, dim): the shared key."""
    if x.dim() == 4 and cos.dim() == 4 and cos.shape[2] == 1:
        return rope(x, cos.squeeze(2), sin.squeeze(2), interleave)
    if x.dim() == 3 and cos.dim() == 3:
        return rope(x.unsqueeze(2), cos, sin, interleave).squeeze(2)
    y: Tensor = plain(x, cos, sin, interleave)
    return y


class Packed(NamedTuple):
    """Packed documents by their edges: what attention takes in place of a mask."""

    starts: Tensor  # (documents + 1,) int32, in rows laid end to end
    longest: int
    dense: Callable[[], Tensor]  # the mask, for attention that needs one


def _packed(
    plain: Operation,
    seq: int,
    kv: int,
    attention_mask: Tensor | None,
    document_ids: Tensor | None,
    like: Tensor,
) -> Tensor | Packed | None:
    """Edges instead of a (seq, kv) mask, where each document lies in one piece."""

    def dense() -> Any:
        return plain(seq, kv, attention_mask, document_ids, like)

    # A single token may be a cache's first, whose attention takes no edges.
    if document_ids is None or attention_mask is not None or seq != kv or seq == 1:
        mask: Tensor | None = dense()
        return mask
    new = _changes(document_ids)
    starts = new.flatten().nonzero()[:, 0]
    # Ids that come back later would be one document in two pieces.
    if len(starts) != int(_changes(document_ids.sort(1).values).sum()):
        mask = dense()
        return mask
    starts = torch.cat((starts, starts.new_tensor([new.numel()])))
    return Packed(starts.to(torch.int32), int(starts.diff().max()), dense)


def _changes(ids: Tensor) -> Tensor:
    """(batch, seq) bool: True on the first token of each run of equal ids."""
    first = torch.ones_like(ids[:, :1], dtype=torch.bool)
    return torch.cat((first, ids[:, 1:] != ids[:, :-1]), 1)


def _expanded(
    plain: Operation,
    mla: MLA,
    q_nope: Tensor,
    q_rope: Tensor,
    latent: Tensor,
    k_rope: Tensor,
    mask: Tensor | Packed | None,
) -> Tensor:
    """Attention of every head over keys of nope + rope numbers and values of v."""
    if isinstance(mask, Tensor) or (mla.training and mla.dropout):
        mask = mask.dense() if isinstance(mask, Packed) else mask
        out: Tensor = plain(mla, q_nope, q_rope, latent, k_rope, mask)
        return out
    batch, seq = q_nope.shape[:2]
    kv = mla.kv_b_proj(latent).unflatten(-1, (mla.heads, -1))
    k_nope, value = kv.split((mla.nope, mla.v), dim=-1)
    shared = k_rope.unsqueeze(-2).expand(-1, -1, mla.heads, -1)
    query = torch.cat((q_nope, q_rope), -1).flatten(0, 1)
    key = torch.cat((k_nope, shared), -1).flatten(0, 1)
    longest = seq if mask is None else mask.longest
    if mask is None:
        edges = torch.arange(0, batch * seq + 1, seq, device=latent.device)
    else:
        edges = mask.starts
    query, key, value = _lowered(query, key, value.flatten(0, 1))
    out = attention(query, key, value, edges, mla.scale, longest=longest)
    return out.view(batch, seq, -1)


def _lowered(*tensors: Tensor) -> list[Tensor]:
    """Tensors in autocast's type, which knows of no op but torch's own."""
    device = tensors[0].device.type
    if not torch.is_autocast_enabled(device):
        return list(tensors)
    return [t.to(torch.get_autocast_dtype(device)) for t in tensors]


def _experts(
    plain: Operation, rows: Tensor, gate_up: Tensor, down: Tensor, counts: Tensor
) -> Tensor:
    """Two grouped products, whatever the widths."""
    gate, up = grouped_mm(rows, gate_up, counts).chunk(2, -1)
    return grouped_mm(swiglu(gate, up), down, counts)


def _heard(module: nn.Module) -> bool:
    """Does someone listen? Hooks run only when the module itself is called."""
    return bool(module._forward_hooks or module._forward_pre_hooks)


def _route(plain: Operation, layer: MoE, x: Tensor) -> Routing:
    """A router that someone listens to, or chooses for, is asked itself."""
    gate = layer.gate
    own = getattr(gate.choose, "__module__", None) == Router.__module__
    if type(gate) is not Router or not own or _heard(gate):
        routing: Routing = plain(layer, x)
        return routing
    logits = F.linear(x.reshape(-1, x.shape[-1]).float(), gate.weight.float())
    limited = gate.method != "greedy"
    routing = route(
        logits,
        gate.e_score_correction_bias if gate.method == "noaux_tc" else None,
        gate.top_k,
        gate.n_group if limited else 1,
        gate.topk_group if limited else 1,
        gate.scoring != "sigmoid",
        gate.normalize,
        gate.scaling,
    )
    if gate.training and torch.is_grad_enabled():
        gate.record(x.shape[:-1], logits, routing)
    return routing


def _dispatch(
    plain: Operation, x: Tensor, routing: Routing, experts: Experts
) -> Tensor:
    top_k = routing.experts.shape[1]
    order = routing.experts.flatten().argsort(stable=True)
    place = torch.empty_like(order)
    place[order] = torch.arange(order.numel(), device=order.device)
    rows = experts(permute(x, order, place, top_k), routing.counts)
    # Under autocast the rows have its type.
    return unpermute(rows, place, routing.weights).to(x.dtype)


def _loss(
    plain: Operation,
    hidden: Tensor,
    head: nn.Module,
    targets: Tensor,
    reduction: str = "mean",
    temperature: float = 1.0,
) -> Tensor:
    """Logits are never held together; a head that FSDP cut or LoRA grew is called."""
    if type(head) is not nn.Linear or head.bias is not None or _heard(head):
        loss: Tensor = plain(hidden, head, targets, reduction, temperature)
        return loss
    hidden, weight = _lowered(hidden, head.weight)
    loss = -token_logprobs(hidden, weight, targets, temperature)
    return {"mean": loss.mean, "sum": loss.sum, "none": loss.clone}[reduction]()


KERNELS: dict[str, Operation] = {
    "RMSNorm.forward": _norm,
    "SwiGLU.forward": _mlp,
    "rotate": _rotate,
    "additive_mask": _packed,
    "MLA._expanded": _expanded,
    "grouped": _experts,
    "looped": _experts,
    "MoE.route": _route,
    "dispatch_local": _dispatch,
    "head_loss": _loss,
}
