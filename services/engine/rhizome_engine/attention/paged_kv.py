"""The tensors of the KV pool: one allocation, seen as pages of each layer."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from rhizome_engine.mapped_memory import map_zeros


class PagedKV:
    """Keys and values of all layers, made once at start.

    A *slot* holds one token: slot = page * page_size + offset. Who owns which page is the page pool's
    business, not this one's.

    The pool starts as zeros, which on a CPU take no memory until a page is written. Later a page holds what
    its last owner left in it: a back end lets nothing beyond a sequence into a result, not even NaN.

    Attributes:
        data: [num_layers, 2, num_pages, page_size, num_kv_heads, head_dim], keys before values.
    """

    def __init__(
        self,
        *,
        num_layers: int,
        num_pages: int,
        page_size: int,
        num_kv_heads: int,
        head_dim: int,
        dtype: torch.dtype,
        device: torch.device,
    ) -> None:
        self.num_pages = num_pages
        self.page_size = page_size
        shape = (num_layers, 2, num_pages, page_size, num_kv_heads, head_dim)
        self.data = _zeros(shape, dtype, device)
        # Views are made once: indexing costs microseconds per layer and step.
        slot_rows = self.data.view(num_layers, 2, num_pages * page_size, num_kv_heads * head_dim)
        self._slots = [(layer[0], layer[1]) for layer in slot_rows]
        page_rows = self.data.view(num_layers, 2, num_pages, -1)
        self._pages = [(layer[0], layer[1]) for layer in page_rows]
        self._gathered = self.data.new_empty(2, 0, page_rows.shape[-1])

    def layer(self, index: int) -> tuple[Tensor, Tensor]:
        """Return a layer's keys and values, each [num_pages, page_size, num_kv_heads, head_dim]."""
        return self.data[index, 0], self.data[index, 1]

    def write(self, layer: int, slots: Tensor, keys: Tensor, values: Tensor) -> None:
        """Store new tokens.

        Args:
            layer: index of the layer.
            slots: [num_tokens] int64.
            keys: [num_tokens, num_kv_heads, head_dim].
            values: like keys.
        """
        key_slots, value_slots = self._slots[layer]
        key_slots.index_copy_(0, slots, keys.flatten(1))
        value_slots.index_copy_(0, slots, values.flatten(1))

    def gather(self, layer: int, pages: Tensor) -> tuple[Tensor, Tensor]:
        """Copy pages into contiguous keys and values.

        Args:
            layer: index of the layer.
            pages: [num_rows, num_pages] int64.

        Returns:
            keys and values, each [num_rows, num_pages * page_size, num_kv_heads, head_dim], in a buffer that
            the next call overwrites: fresh memory would cost a page fault every 4 KiB
        """
        num_rows, pages_per_row = pages.shape
        shape = (num_rows, pages_per_row * self.page_size, *self.data.shape[-2:])
        flat = pages.view(-1)
        if len(flat) > self._gathered.shape[1]:
            self._gathered = self.data.new_empty(2, len(flat), self._gathered.shape[2])
        keys, values = self._gathered[0, : len(flat)], self._gathered[1, : len(flat)]
        # Whole pages as rows of a matrix: copied by memcpy, ten times faster than through four dimensions.
        key_pages, value_pages = self._pages[layer]
        torch.index_select(key_pages, 0, flat, out=keys)
        torch.index_select(value_pages, 0, flat, out=values)
        return keys.view(shape), values.view(shape)

    def copy_page(self, source: int, target: int, num_slots: int) -> None:
        """Copy the first `num_slots` tokens of a page in all layers, to share a partly filled tail page."""
        self.data[:, :, target, :num_slots] = self.data[:, :, source, :num_slots]


def _zeros(shape: tuple[int, ...], dtype: torch.dtype, device: torch.device) -> Tensor:
    """Return zeros; on a CPU they take memory when they are written."""
    num_bytes = math.prod(shape) * dtype.itemsize
    if device.type != "cpu" or not num_bytes:
        return torch.zeros(shape, dtype=dtype, device=device)
    return map_zeros(num_bytes).view(dtype).view(shape)
