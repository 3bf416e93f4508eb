"""Attention through `torch.nn.functional.scaled_dot_product_attention`: any device, any page size.

It is the CPU's back end and the reference that others are tested against. A step is a mix of two shapes:

    decode rows (one new token)     grouped by length; a group's pages are gathered into one padded block and
                                    attended in one call, the padding masked
    prefill rows (several tokens)   one call each, since their lengths differ in two dimensions

Query heads that share a key-value head are a dimension of their own, so keys are never repeated.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor

from rhizome_engine.attention.base import AttentionInputs
from rhizome_engine.attention.paged_kv import PagedKV

MAX_GATHERED_TOKENS = 32768
"""A decode group is split where its padded block would hold more; this bounds the memory of gathering."""

IntArray = NDArray[np.integer[Any]]


@dataclass(frozen=True, slots=True)
class DecodeGroup:
    """Rows of one new token each and of similar length.

    Attributes:
        tokens: [rows] int64, their places in the step's flat arrays; None when they are the whole step.
        pages: [rows, pages] int64, padded with the row's first page.
        mask: [rows, 1, 1, pages * page_size], 0 where a key may be seen and -inf where not.
    """

    tokens: Tensor | None
    pages: Tensor
    mask: Tensor


@dataclass(frozen=True, slots=True)
class PrefillRow:
    """A row of several new tokens.

    Attributes:
        start: its first token in the step's flat arrays.
        end: one past its last.
        pages: [1, pages] int64; None when nothing was computed before, so that the new keys are all keys.
        mask: [end - start, pages * page_size] for rows that have pages; None means plainly causal.
    """

    start: int
    end: int
    pages: Tensor | None
    mask: Tensor | None


@dataclass(frozen=True, slots=True)
class SdpaPlan:
    """See `AttentionPlan`."""

    kv: PagedKV
    slot_mapping: Tensor
    decode_groups: list[DecodeGroup]
    prefill_rows: list[PrefillRow]

    def attend(self, layer: int, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        """Store the new keys and values and attend; shapes as in `AttentionPlan.attend`."""
        self.kv.write(layer, self.slot_mapping, k, v)
        num_tokens, num_heads, head_dim = q.shape
        num_kv_heads = k.shape[1]
        q = q.view(num_tokens, num_kv_heads, num_heads // num_kv_heads, head_dim)
        if len(self.decode_groups) == 1 and self.decode_groups[0].tokens is None:
            return self._decode(layer, self.decode_groups[0], q).flatten(1, 2)
        out = torch.empty_like(q)
        for group in self.decode_groups:
            assert group.tokens is not None
            out.index_copy_(0, group.tokens, self._decode(layer, group, q.index_select(0, group.tokens)))
        for row in self.prefill_rows:
            span = slice(row.start, row.end)
            out[span] = self._prefill(layer, row, q[span], k[span], v[span])
        return out.flatten(1, 2)

    def _decode(self, layer: int, group: DecodeGroup, q: Tensor) -> Tensor:
        """Attend [rows, kv_heads, group, head_dim]; the query heads of a group stand where queries stand."""
        keys, values = self.kv.gather(layer, group.pages)
        return F.scaled_dot_product_attention(
            q, keys.transpose(1, 2), values.transpose(1, 2), attn_mask=group.mask
        )

    def _prefill(self, layer: int, row: PrefillRow, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        """Attend [tokens, kv_heads, group, head_dim]; key-value heads stand where the batch stands."""
        if row.pages is not None:
            gathered_k, gathered_v = self.kv.gather(layer, row.pages)
            k, v = gathered_k[0], gathered_v[0]
        group = q.shape[2]
        keys = k.transpose(0, 1)[:, None].expand(-1, group, -1, -1)
        values = v.transpose(0, 1)[:, None].expand(-1, group, -1, -1)
        out = F.scaled_dot_product_attention(
            q.permute(1, 2, 0, 3), keys, values, attn_mask=row.mask, is_causal=row.mask is None
        )
        return out.permute(2, 0, 1, 3)


class SdpaBackend:
    """See `AttentionBackend`.

    Args:
        kv: the pool that is written and read.
    """

    name = "sdpa"

    def __init__(self, kv: PagedKV) -> None:
        self.kv = kv
        self.dtype = kv.data.dtype
        self.device = kv.data.device

    def plan(self, inputs: AttentionInputs) -> SdpaPlan:
        """Sort rows into decode groups and prefills and make their masks."""
        query_len = np.diff(inputs.query_start)
        num_pages = -(-inputs.context_len // self.kv.page_size)
        decode = np.flatnonzero(query_len == 1)
        # A group's page counts lie between two powers of two, so at most half of a gathered block is padding.
        bit_length = np.frexp(num_pages[decode] - 1.0)[1]
        groups: list[IntArray] = []
        for bits in np.unique(bit_length):
            rows = decode[bit_length == bits]
            rows_per_call = max(1, MAX_GATHERED_TOKENS // int(num_pages[rows].max() * self.kv.page_size))
            groups += [rows[start : start + rows_per_call] for start in range(0, len(rows), rows_per_call)]
        whole_step = len(groups) == 1 and len(decode) == len(query_len)
        return SdpaPlan(
            kv=self.kv,
            slot_mapping=inputs.slot_mapping,
            decode_groups=[self._decode_group(inputs, rows, num_pages[rows], whole_step) for rows in groups],
            prefill_rows=[self._prefill_row(inputs, row) for row in np.flatnonzero(query_len > 1).tolist()],
        )

    def _decode_group(
        self, inputs: AttentionInputs, rows: IntArray, num_pages: IntArray, whole_step: bool
    ) -> DecodeGroup:
        width = int(num_pages.max())
        pages = inputs.page_table[rows, :width].astype(np.int64)
        # Beyond its own pages a row reads its first page again: never another request's.
        pages = np.where(np.arange(width) < num_pages[:, None], pages, pages[:, :1])
        hidden = np.arange(width * self.kv.page_size) >= inputs.context_len[rows, None]
        return DecodeGroup(
            tokens=None if whole_step else self._to_device(inputs.query_start[rows].astype(np.int64)),
            pages=self._to_device(pages),
            mask=self._mask(hidden)[:, None, None, :],
        )

    def _prefill_row(self, inputs: AttentionInputs, row: int) -> PrefillRow:
        start, end = int(inputs.query_start[row]), int(inputs.query_start[row + 1])
        context_len = int(inputs.context_len[row])
        if context_len == end - start:
            return PrefillRow(start, end, pages=None, mask=None)
        num_pages = -(-context_len // self.kv.page_size)
        positions = np.arange(context_len - (end - start), context_len)
        hidden = np.arange(num_pages * self.kv.page_size) > positions[:, None]
        pages = inputs.page_table[row : row + 1, :num_pages].astype(np.int64)
        return PrefillRow(start, end, pages=self._to_device(pages), mask=self._mask(hidden))

    def _mask(self, hidden: NDArray[np.bool_]) -> Tensor:
        """Turn booleans (True is hidden) into what is added to the scores."""
        mask = torch.zeros(hidden.shape, dtype=self.dtype, device=self.device)
        return mask.masked_fill_(self._to_device(hidden), float("-inf"))

    def _to_device(self, array: NDArray[Any]) -> Tensor:
        return torch.from_numpy(array).to(self.device, non_blocking=True)
