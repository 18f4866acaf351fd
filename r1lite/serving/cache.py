"""The paged latent cache, and attention of a ragged batch over it.

Every new token, of a prompt or decoding, alone in its sequence or one of many, is
a row that attends to its own sequence's pages in latent space ("absorbed", see
chapter 3). One way for all of them means that a token's numbers do not depend on
how the scheduler cut the work into steps. Expanding keys and values for prompts,
as training does, takes fewer products per pair of tokens but expands the whole
past for every chunk: at V3's sizes it wins only for chunks above some 170 tokens.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from r1lite.attention.mla import MLA
from r1lite.kernels.mla_decode import mla_decode
from r1lite.model import R1Model
from r1lite.serving.steady import fill_up

BLOCK = 128  # tokens of the past that one product sums over
WASTE = 1.25  # padded pairs of tokens allowed per real one
FREE = 1024  # padded pairs that cost less than one more group
SPLITS = 4  # parts of a row's past in the kernel: fixed, or company would decide


class LatentPages:
    """Latents and rotary keys of all layers: (layers, pages + 1, page_size, width).

    The last page is scratch: rows that only fill up a batch write there. With
    `mtp` the MTP block has a layer of its own after the trunk's.
    """

    def __init__(
        self, model: R1Model, num_pages: int, page_size: int, mtp: bool = False
    ) -> None:
        layers = [m for m in model.modules() if isinstance(m, MLA)]
        layers = layers[: model.config.num_hidden_layers + mtp]  # MTP's is last
        width = model.config.cache_width
        self.data = torch.zeros(
            (len(layers), num_pages + 1, page_size, width),
            dtype=model.embed_tokens.weight.dtype,
            device=model.embed_tokens.weight.device,
        )
        self.page_size = page_size
        self.folds = [fold(layer) for layer in layers]

    @property
    def scratch(self) -> int:
        """The slot (page * page_size + place) that nobody reads."""
        return (self.data.shape[1] - 1) * self.page_size

    def copy(self, source: Sequence[int], target: Sequence[int]) -> None:
        """Copy whole pages, in all layers."""
        self.data[:, list(target)] = self.data[:, list(source)]


def page_bytes(model: R1Model, page_size: int, mtp: bool = False) -> int:
    """Bytes of one page over all layers."""
    layers = model.config.num_hidden_layers + mtp
    width = model.config.cache_width
    return layers * page_size * width * model.embed_tokens.weight.element_size()


@torch.no_grad()
def fold(layer: MLA) -> tuple[Tensor, Tensor]:
    """W_k (heads, nope, rank), for queries; W_v (heads, rank, v), for the output."""
    weight = layer.kv_b_proj.weight.unflatten(0, (layer.heads, -1))
    w_k, w_v = weight.split((layer.nope, layer.v), dim=1)
    return w_k.contiguous(), w_v.transpose(1, 2).contiguous()


@dataclass(frozen=True)
class Span:
    """New tokens of one sequence: `count` from position `start`, in `pages`."""

    start: int
    count: int
    pages: Sequence[int]


@dataclass(frozen=True)
class Group:
    """Sequences of like shape, padded to R sequences of T new tokens, L in all."""

    ask: Tensor  # (R, T) rows of the batch
    put: Tensor  # (R * T,) where results go; padding goes to the last, unused row
    table: Tensor  # (R, L / page_size) pages
    mask: Tensor  # (R, T, 1, L) 0 where visible, -inf elsewhere


class Ragged:
    """One step's rows, with the `attend` that MLA calls: a cache of chapter 3.

    The rows are the spans' tokens one after the other in one batch row, filled
    up to a multiple of sixteen with copies of the first, which ask for no expert
    that is not needed anyway; nothing else is padded outside the attention.

    kernel: every row through chapter 11's `mla_decode`, which reads the pages
        where they lie; None: on a GPU. Else rows are gathered in groups.
    """

    length = 0  # what R1Model.hidden counts from; positions are given instead

    def __init__(
        self, pages: LatentPages, spans: Sequence[Span], kernel: bool | None = None
    ) -> None:
        self.pages, device = pages, pages.data.device
        self.real = sum(span.count for span in spans)
        self.rows = fill_up(self.real)
        size = pages.page_size
        positions: list[int] = []
        slots: list[int] = []
        for span in spans:
            at = range(span.start, span.start + span.count)
            positions += at
            slots += [span.pages[p // size] * size + p % size for p in at]
        fill = self.rows - self.real
        self.positions = torch.tensor(positions + positions[:1] * fill, device=device)
        self.slots = torch.tensor(slots + [pages.scratch] * fill, device=device)
        self.kernel = device.type != "cpu" if kernel is None else kernel
        self.groups: list[Group] = []
        if self.kernel:
            self._tabled(spans)
        else:
            self.groups = self._grouped(spans)

    def advance(self, new: int) -> None:
        """Nothing: the scheduler counts."""

    def attend(
        self, layer: MLA, q_nope: Tensor, q_rope: Tensor, latent: Tensor, k_rope: Tensor
    ) -> Tensor:
        """Write the new rows' latents, mix every row's past: (1, rows, heads * v).

        q_nope: (1, rows, heads, nope); q_rope: (1, rows, heads, rope);
        latent: (1, rows, rank); k_rope: (1, rows, rope).
        """
        pages = self.pages.data[layer.layer]
        pages.view(-1, pages.shape[-1])[self.slots] = torch.cat((latent, k_rope), -1)[0]
        w_k, w_v = self.pages.folds[layer.layer]
        q_latent = torch.bmm(q_nope[0].transpose(0, 1), w_k).transpose(0, 1)
        query = torch.cat((q_latent, q_rope[0]), dim=-1)
        mixed = self._mix(query, pages, layer.rank, layer.scale)
        out = torch.bmm(mixed.transpose(0, 1), w_v)
        return out.transpose(0, 1).flatten(1).unsqueeze(0)

    def _mix(self, query: Tensor, pages: Tensor, rank: int, scale: float) -> Tensor:
        """query (rows, heads, rank + rope) -> (rows, heads, rank)."""
        if self.kernel:
            return mla_decode(
                query, pages, self.tables, self.lengths, rank, scale, SPLITS
            )
        rows, heads, width = query.shape
        query = query * scale
        mixed = query.new_zeros(rows + 1, heads, rank)
        for group in self.groups:
            past = pages[group.table].view(len(group.table), -1, width)
            out = mix(query[group.ask], past, group.mask, rank)
            mixed[group.put] = out.flatten(0, 1)
        mixed[self.real :] = mixed[0]
        return mixed[:rows]

    def _grouped(self, spans: Sequence[Span]) -> list[Group]:
        """Spans of like shape together, so that little of a group is padding."""
        first, firsts = 0, []
        for span in spans:
            firsts.append(first)
            first += span.count
        order = sorted(
            range(len(spans)), key=lambda i: (spans[i].count, spans[i].start)
        )
        groups: list[list[int]] = []
        real = longest = 0
        for i in order:
            seen = spans[i].start + spans[i].count
            pairs = spans[i].count * seen
            longest = max(longest, seen)
            padded = (len(groups[-1]) + 1 if groups else 1) * spans[i].count * longest
            if not groups or padded > WASTE * (real + pairs) + FREE:
                groups.append([])
                real, longest = 0, seen
            groups[-1].append(i)
            real += pairs
        return [self._group([(spans[i], firsts[i]) for i in g]) for g in groups]

    def _group(self, members: list[tuple[Span, int]]) -> Group:
        size = self.pages.page_size
        most = max(span.count for span, _ in members)
        used = max(-(-(span.start + span.count) // size) for span, _ in members)
        asks, puts, tables, seen = [], [], [], []
        for span, first in members:
            pad = most - span.count
            rows = list(range(first, first + span.count))
            asks.append(rows + [first] * pad)
            puts += rows + [self.rows] * pad
            needed = span.pages[:used]
            tables.append([*needed, *[needed[0]] * (used - len(needed))])
            seen.append(span.start + 1)
        device = self.pages.data.device
        columns = torch.arange(used * size, device=device)
        limit = torch.tensor(seen, device=device)[:, None]
        limit = (limit + torch.arange(most, device=device))[..., None, None]
        zero = torch.zeros((), dtype=self.pages.data.dtype, device=device)
        mask = torch.where(columns < limit, zero, -torch.inf)
        ask, put, table = (torch.tensor(t, device=device) for t in (asks, puts, tables))
        return Group(ask, put, table, mask)

    def _tabled(self, spans: Sequence[Span]) -> None:
        """For the kernel, every row is a sequence: its table and its length."""
        device, most = self.pages.data.device, max(len(s.pages) for s in spans)
        tables = torch.tensor([[*s.pages, *[0] * (most - len(s.pages))] for s in spans])
        counts = torch.tensor([s.count for s in spans])
        fill = self.rows - self.real
        tables = tables.repeat_interleave(counts, 0)
        tables = torch.cat((tables, tables[:1].expand(fill, -1)))
        self.tables = tables.to(device, torch.int32)
        self.lengths = (self.positions + 1).to(torch.int32)


def mix(query: Tensor, past: Tensor, mask: Tensor, rank: int) -> Tensor:
    """softmax(q c) c of heads that share their keys, which are their values.

    The sum over the past goes in blocks of fixed size, in order: what padding
    adds at the end is exactly zero, so a row's result is the same in any group.

    Args:
        query: (R, T, heads, width), scaled; past: (R, L, width); mask: (R, T, 1, L).

    Returns:
        (R, T, heads, rank).
    """
    count, new, heads, _ = query.shape
    scores = torch.bmm(query.flatten(1, 2), past.transpose(1, 2))
    scores = scores.view(count, new, heads, -1).add_(mask)
    weights = scores.softmax(-1, dtype=torch.float32).to(past.dtype).flatten(1, 2)
    value = past[..., :rank]
    out = torch.bmm(weights[..., :BLOCK], value[:, :BLOCK])
    for at in range(BLOCK, past.shape[1], BLOCK):
        out.baddbmm_(weights[..., at : at + BLOCK], value[:, at : at + BLOCK])
    return out.view(count, new, heads, rank)
