"""Attention through `torch.nn.functional.scaled_dot_product_attention`: any device, any page size.

It works everywhere and is the reference that others are tested against. A step is a mix of two shapes:

    decode rows (one new token)     grouped by length; a group's pages are gathered into one padded block and
                                    attended in one call, the padding masked
    prefill rows (several tokens)   one call each, since their lengths differ in two dimensions

Query heads that share a key-value head are a dimension of their own, so keys are never repeated.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor

from rhizome_engine.attention.base import AttentionInputs, AttentionLayer, StaticInputs
from rhizome_engine.attention.paged_kv import PagedKV
from rhizome_engine.layers.rms_norm import normalise
from rhizome_engine.layers.rotary import Rope, rotate

MAX_GATHERED_TOKENS = 32768
"""A decode group is split where its padded block would hold more; this bounds the memory of gathering."""

IntArray = NDArray[np.integer[Any]]


@dataclass(frozen=True, slots=True)
class DecodeGroup:
    """Rows of one new token each and of similar length.

    Attributes:
        tokens: [rows] int64, their places in the step's flat arrays; None when they are the whole step.
        pages: [rows, pages] int64, padded with the row's first page.
        distance: [rows, pages * page_size] int64, how far each key lies behind the query; negative where
            there is no key.
        unwritten: [m] int64, slots of the gathered block that lie beyond the rows' contexts.
    """

    tokens: Tensor | None
    pages: Tensor
    distance: Tensor
    unwritten: Tensor


@dataclass(frozen=True, slots=True)
class PrefillRow:
    """A row of several new tokens.

    Attributes:
        start: its first token in the step's flat arrays.
        end: one past its last.
        pages: [1, pages] int64; None when nothing was computed before, so that the new keys are all keys.
        distance: [end - start, keys] int64, as in `DecodeGroup`; keys are those of the pages or the new ones.
        unwritten: as in `DecodeGroup`; None without pages.
    """

    start: int
    end: int
    pages: Tensor | None
    distance: Tensor
    unwritten: Tensor | None


@dataclass(slots=True)
class SdpaPlan:
    """See `AttentionPlan`."""

    kv: PagedKV
    slot_mapping: Tensor
    tables: list[tuple[Tensor, Tensor]]
    decode_groups: list[DecodeGroup]
    prefill_rows: list[PrefillRow]
    _masks: dict[tuple[int, int], Tensor] = field(default_factory=dict)

    def attend(self, layer: AttentionLayer, qkv: Tensor) -> Tensor:
        """Store the new keys and values and attend; shapes as in `AttentionPlan.attend`."""
        q, k, v = self._split(layer, qkv)
        keys, values = k.to(self.kv.data.dtype), v.to(self.kv.data.dtype)
        self.kv.write(layer.index, self.slot_mapping, keys, values)
        q = q.reshape(len(q), layer.num_kv_heads, -1, layer.head_dim)
        if len(self.decode_groups) == 1 and self.decode_groups[0].tokens is None:
            return self._decode(layer, self.decode_groups[0], q).flatten(1)
        out = torch.empty_like(q)
        for group in self.decode_groups:
            assert group.tokens is not None
            out.index_copy_(0, group.tokens, self._decode(layer, group, q.index_select(0, group.tokens)))
        for row in self.prefill_rows:
            span = slice(row.start, row.end)
            out[span] = self._prefill(layer, row, q[span], keys[span], values[span])
        return out.flatten(1)

    def _split(self, layer: AttentionLayer, qkv: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Return queries and keys, normalised and rotated, and values, each [num_tokens, heads, head_dim]."""
        heads = qkv.view(len(qkv), -1, layer.head_dim)
        first_v = layer.num_heads + layer.num_kv_heads
        q, k, v = heads[:, : layer.num_heads], heads[:, layer.num_heads : first_v], heads[:, first_v:]
        if layer.q_norm is not None:
            q = normalise(q, layer.q_norm, layer.norm_eps)
        if layer.k_norm is not None:
            k = normalise(k, layer.k_norm, layer.norm_eps)
        if layer.rope is not None:
            q, k = rotate(q, *self.tables[layer.rope]), rotate(k, *self.tables[layer.rope])
        return q, k, v

    def _decode(self, layer: AttentionLayer, group: DecodeGroup, q: Tensor) -> Tensor:
        """Attend [rows, kv_heads, group, head_dim]; the query heads of a group stand where queries stand."""
        keys, values = self._gather(layer, group.pages, group.unwritten)
        mask = self._mask(layer, group.distance)[:, None, None, :]
        return _attend(layer, q, keys.transpose(1, 2), values.transpose(1, 2), mask)

    def _prefill(self, layer: AttentionLayer, row: PrefillRow, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        """Attend [tokens, kv_heads, group, head_dim]; key-value heads stand where the batch stands."""
        if row.pages is not None:
            assert row.unwritten is not None, "comes with pages"
            gathered_k, gathered_v = self._gather(layer, row.pages, row.unwritten)
            k, v = gathered_k[0], gathered_v[0]
        group = q.shape[2]
        keys = k.transpose(0, 1)[:, None].expand(-1, group, -1, -1)
        values = v.transpose(0, 1)[:, None].expand(-1, group, -1, -1)
        q = q.permute(1, 2, 0, 3)
        if row.pages is None and not layer.window and not layer.softcap:
            narrow = q.to(keys.dtype)
            out = F.scaled_dot_product_attention(narrow, keys, values, is_causal=True, scale=layer.scale)
        else:
            out = _attend(layer, q, keys, values, self._mask(layer, row.distance))
        return out.permute(2, 0, 1, 3).to(q.dtype)

    def _gather(self, layer: AttentionLayer, pages: Tensor, unwritten: Tensor) -> tuple[Tensor, Tensor]:
        """Return keys and values as `PagedKV.gather` does, zero where the row has written nothing.

        A page keeps what its last owner left in it, and a mask does not turn NaN into nothing.
        """
        keys, values = self.kv.gather(layer.index, pages)
        if len(unwritten):
            keys.flatten(0, 1).index_fill_(0, unwritten, 0.0)
            values.flatten(0, 1).index_fill_(0, unwritten, 0.0)
        return keys, values

    def _mask(self, layer: AttentionLayer, distance: Tensor) -> Tensor:
        """Turn distances into what is added to scores, 0 or -inf; made once per window and step."""
        key = (id(distance), layer.window)
        if key not in self._masks:
            hidden = distance < 0
            if layer.window:
                hidden |= distance >= layer.window
            mask = torch.zeros(distance.shape, dtype=self.kv.data.dtype, device=distance.device)
            self._masks[key] = mask.masked_fill_(hidden, float("-inf"))
        return self._masks[key]


class SdpaBackend:
    """See `AttentionBackend`.

    Args:
        kv: the pool that is written and read.
        ropes: the model's rotary embeddings.
    """

    name = "sdpa"

    def __init__(self, kv: PagedKV, ropes: Sequence[Rope]) -> None:
        self.kv = kv
        self.ropes = ropes
        self.device = kv.data.device

    def plan(self, inputs: AttentionInputs) -> SdpaPlan:
        """Sort rows into decode groups and prefills."""
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
            tables=[rope.table(inputs.positions) for rope in self.ropes],
            decode_groups=[self._decode_group(inputs, rows, num_pages[rows], whole_step) for rows in groups],
            prefill_rows=[self._prefill_row(inputs, row) for row in np.flatnonzero(query_len > 1).tolist()],
        )

    def static_plan(self, inputs: StaticInputs) -> None:
        """There is none: its shapes follow the rows' lengths."""

    def _decode_group(
        self, inputs: AttentionInputs, rows: IntArray, num_pages: IntArray, whole_step: bool
    ) -> DecodeGroup:
        width = int(num_pages.max())
        pages = inputs.page_table[rows, :width].astype(np.int64)
        # Beyond its own pages a row reads its first page again: never another request's.
        pages = np.where(np.arange(width) < num_pages[:, None], pages, pages[:, :1])
        distance = inputs.context_len[rows, None] - 1 - np.arange(width * self.kv.page_size)
        return DecodeGroup(
            tokens=None if whole_step else self._to_device(inputs.query_start[rows].astype(np.int64)),
            pages=self._to_device(pages),
            distance=self._to_device(distance),
            unwritten=self._to_device(np.flatnonzero(distance < 0)),
        )

    def _prefill_row(self, inputs: AttentionInputs, row: int) -> PrefillRow:
        start, end = int(inputs.query_start[row]), int(inputs.query_start[row + 1])
        context_len = int(inputs.context_len[row])
        positions = np.arange(context_len - (end - start), context_len)
        if context_len == end - start:
            return PrefillRow(start, end, None, self._to_device(positions[:, None] - positions), None)
        num_pages = -(-context_len // self.kv.page_size)
        distance = positions[:, None] - np.arange(num_pages * self.kv.page_size)
        pages = inputs.page_table[row : row + 1, :num_pages].astype(np.int64)
        unwritten = self._to_device(np.arange(context_len, num_pages * self.kv.page_size))
        return PrefillRow(start, end, self._to_device(pages), self._to_device(distance), unwritten)

    def _to_device(self, array: NDArray[Any]) -> Tensor:
        return torch.from_numpy(array).to(self.device, non_blocking=True)


def _attend(layer: AttentionLayer, q: Tensor, keys: Tensor, values: Tensor, mask: Tensor) -> Tensor:
    """Attend [..., queries, head_dim] to [..., keys, head_dim]; the result has the dtype of q."""
    narrow = q.to(keys.dtype)
    if not layer.softcap:
        out = F.scaled_dot_product_attention(narrow, keys, values, attn_mask=mask, scale=layer.scale)
        return out.to(q.dtype)
    scores = (narrow @ keys.transpose(-1, -2)).float() * layer.scale
    scores = layer.softcap * torch.tanh(scores / layer.softcap) + mask
    return (scores.softmax(dim=-1).to(values.dtype) @ values).to(q.dtype)
