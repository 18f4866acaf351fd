"""What MLA remembers of a token: one latent and one rotary key per layer.

For the 671B model that is (512 + 64) numbers times 61 layers, 70,272 bytes in
bfloat16 where plain attention would keep 71 times as much.
"""

from __future__ import annotations

import torch
from torch import Tensor

from r1lite.config import R1Config
from r1lite.errors import R1Error


class LatentCache:
    """Latents (after their norm) and rotary keys (after rotation) of all layers.

    ``data[layer]`` is (batch, max_len, kv_lora_rank + qk_rope_head_dim);
    ``length`` columns are filled, the same for every row: prompts of different
    lengths are padded on the left.
    """

    def __init__(
        self,
        config: R1Config,
        batch: int,
        max_len: int,
        dtype: torch.dtype = torch.float32,
        device: torch.device | str = "cpu",
    ) -> None:
        shape = (batch, max_len, config.cache_width)
        self.data = [
            torch.zeros(shape, dtype=dtype, device=device)
            for _ in range(config.num_hidden_layers)
        ]
        self.max_len = max_len
        self.length = 0

    def append(self, layer: int, latent: Tensor, k_rope: Tensor) -> Tensor:
        """Write the new columns of one layer; `advance` makes them count.

        Args:
            latent: (batch, new, kv_lora_rank); k_rope: (batch, new, rope dim).

        Returns:
            (batch, length + new, width), a view of everything so far.

        Raises:
            R1Error: the cache is full, or of another number of rows.
        """
        rows = len(self.data[layer])
        if len(latent) != rows:  # one row would be written to all
            raise R1Error(
                f"cache: it was made for {rows} rows, the batch has {len(latent)}; "
                "make one for this batch"
            )
        end = self.length + latent.shape[1]
        if end > self.max_len:
            raise R1Error(
                f"cache: {end} tokens do not fit its max_len of {self.max_len}; "
                "make a longer cache or shorten the prompt"
            )
        rank = latent.shape[-1]
        new = self.data[layer][:, self.length : end]
        new[..., :rank] = latent
        new[..., rank:] = k_rope
        return self.data[layer][:, :end]

    def advance(self, new: int) -> None:
        """Count `new` columns as filled, once all layers have written them."""
        self.length += new

    def select(self, rows: Tensor) -> None:
        """Keep these rows, in this order. rows: (kept,) int64."""
        for layer, old in enumerate(self.data):
            kept = old.new_zeros(len(rows), *old.shape[1:])
            kept[:, : self.length] = old[:, : self.length].index_select(0, rows)
            self.data[layer] = kept

    def bytes_per_token(self) -> int:
        """Bytes one token takes over all layers."""
        return sum(d.shape[-1] * d.element_size() for d in self.data)
