"""Attention in the flash-attn packages, with our own Triton kernels around them.

rows of several new tokens   flash-attn 4 on Hopper where it can be imported, else flash-attn 2.8; from a
copy of prefix and new tokens side by side (cheap beside the products), or
by 2.8 in their pages where a page holds a multiple of 256 tokens
rows of one new token        flash-attn 2.8 where a page holds a multiple of 256 tokens, else our decode
all rows                     our store: norm, rotation, writing to the pages
recorded steps               our kernels: the packages want lengths on the host
"""

from __future__ import annotations

import inspect
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from rhizome_engine.attention.base import AttentionInputs, AttentionLayer, StaticInputs
from rhizome_engine.attention.flash_packages import Attend, FlashFunctions, find_functions, why_not
from rhizome_engine.attention.paged_kv import PagedKV
from rhizome_engine.attention.triton.backend import Scratch, TritonBackend, TritonPlan, host_arrays
from rhizome_engine.layers.rotary import Rope
from rhizome_engine.sampling.staging import to_device

PAGE_MULTIPLE = 256
"""flash-attn 2.8 reads pages that hold a multiple of so many tokens."""
MAX_GATHERED_TOKENS = 32768
"""Rows are attended in several calls where a copy of their contexts would hold more."""


@dataclass(frozen=True, slots=True)
class Chunk:
    """Rows of several new tokens that are attended in one call.

    Attributes:
        tokens: [n] int64, their places in the step; None when they are the whole step.
        query_start: [rows + 1] int32, among these tokens.
        key_start: [rows + 1] int32, where each row's keys begin if all lay side by side.
        longest_query: most new tokens of a row.
        longest_context: most keys of a row.
        slots: [keys] int64, where the keys are; None when they are read in their pages.
        page_table: [rows, pages] int32; None when they are not.
    """

    tokens: Tensor | None
    query_start: Tensor
    key_start: Tensor
    longest_query: int
    longest_context: int
    slots: Tensor | None
    page_table: Tensor | None


@dataclass(frozen=True, slots=True)
class Singles:
    """Rows of one new token that flash-attn attends in their pages.

    Attributes:
        tokens: [rows] int64, their places in the step.
        context_len: [rows] int32.
        page_table: [rows, pages] int32.
    """

    tokens: Tensor
    context_len: Tensor
    page_table: Tensor


class FlashAttnPlan:
    """See `AttentionPlan`.

    Args:
        functions: attend.
        own: our kernels' plan of the same step.
        chunks: rows of several new tokens.
        singles: rows of one, where they are not left to our kernels.
    """

    def __init__(
        self, functions: FlashFunctions, own: TritonPlan, chunks: list[Chunk], singles: Singles | None
    ) -> None:
        self._functions = functions
        self._own = own
        self._chunks = chunks
        self._singles = singles

    def attend(self, layer: AttentionLayer, qkv: Tensor) -> Tensor:
        """Store the new keys and values and attend; shapes as in `AttentionPlan.attend`."""
        if not self._chunks and self._singles is None:
            return self._own.attend(layer, qkv)
        q = self._own.store(layer, qkv)
        keys, values = self._own.pages_of(layer)
        out = self._own.scratch.take("out", tuple(q.shape), qkv.dtype)
        if self._singles is not None:
            tokens = self._singles.tokens
            result = self._attend_singles(layer, q.index_select(0, tokens), keys, values, self._singles)
            out.index_copy_(0, tokens, result.to(out.dtype))
        elif self._own.has_singles:
            self._own.decode(layer, q, out)
        for chunk in self._chunks:
            if chunk.tokens is None:
                out.copy_(self._attend_chunk(layer, q, keys, values, chunk))
            else:
                result = self._attend_chunk(layer, q.index_select(0, chunk.tokens), keys, values, chunk)
                out.index_copy_(0, chunk.tokens, result.to(out.dtype))
        return out.view(len(qkv), -1)

    def _attend_singles(
        self, layer: AttentionLayer, q: Tensor, keys: Tensor, values: Tensor, singles: Singles
    ) -> Tensor:
        assert self._functions.with_kvcache is not None, "planned only where it exists"
        result: Tensor = self._functions.with_kvcache(
            q[:, None],
            keys,
            values,
            cache_seqlens=singles.context_len,
            block_table=singles.page_table,
            softmax_scale=layer.scale,
            causal=True,
            window_size=(layer.window - 1, 0) if layer.window else (-1, -1),
            softcap=layer.softcap,
        )
        return result[:, 0]

    def _attend_chunk(
        self, layer: AttentionLayer, q: Tensor, keys: Tensor, values: Tensor, chunk: Chunk
    ) -> Tensor:
        if chunk.slots is not None:
            keys = _gather(self._own.scratch, "keys", keys, chunk.slots)
            values = _gather(self._own.scratch, "values", values, chunk.slots)
        sizes = (chunk.query_start, chunk.key_start, chunk.longest_query, chunk.longest_context)
        if chunk.page_table is None and self._functions.hopper_varlen is not None:
            return _attend_on_hopper(self._functions.hopper_varlen, layer, (q, keys, values), sizes)
        assert self._functions.varlen is not None, "pages are planned only where it exists"
        result: Tensor = self._functions.varlen(
            q,
            keys,
            values,
            *sizes,
            softmax_scale=layer.scale,
            causal=True,
            window_size=(layer.window - 1, 0) if layer.window else (-1, -1),
            softcap=layer.softcap,
            block_table=chunk.page_table,
        )
        return result


def _attend_on_hopper(
    function: Attend,
    layer: AttentionLayer,
    tensors: tuple[Tensor, Tensor, Tensor],
    sizes: tuple[Tensor, Tensor, int, int],
) -> Tensor:
    """Call flash-attn-4: everything by name, as its order changed, and the longest lengths where it asks."""
    query_start, key_start, longest_query, longest_context = sizes
    longest = {"max_seqlen_q": longest_query, "max_seqlen_k": longest_context}
    accepted = inspect.signature(function).parameters
    result = function(
        *tensors,
        cu_seqlens_q=query_start,
        cu_seqlens_k=key_start,
        softmax_scale=layer.scale,
        causal=True,
        window_size=(layer.window - 1, 0) if layer.window else (None, None),
        softcap=layer.softcap,
        **{name: value for name, value in longest.items() if name in accepted},
    )
    attended: Tensor = result[0] if isinstance(result, tuple) else result
    return attended


def _gather(scratch: Scratch, name: str, pages: Tensor, slots: Tensor) -> Tensor:
    """Copy the keys or values of slots side by side, [slots, num_kv_heads, head_dim]."""
    flat = pages.view(-1, pages.shape[2] * pages.shape[3])
    gathered = scratch.take(name, (len(slots), flat.shape[1]), pages.dtype)
    torch.index_select(flat, 0, slots, out=gathered)
    return gathered.view(-1, *pages.shape[2:])


class FlashAttnBackend:
    """See `AttentionBackend`.

    Args:
        kv: the pool, in bfloat16 or float16.
        ropes: the model's rotary embeddings.
        functions: what attends; by default what can be imported.

    Raises:
        ValueError: neither package can be used here, or the pool is none that they can read.
    """

    name = "flash_attn"

    def __init__(self, kv: PagedKV, ropes: Sequence[Rope], functions: FlashFunctions | None = None) -> None:
        self._functions = find_functions(kv.data.device) if functions is None else functions
        reason = why_not(self._functions, kv.data.dtype, kv.data.shape[-1])
        if reason is not None:
            raise ValueError(f"flash_attn attention cannot run: {reason}")
        self.kv = kv
        self._own = TritonBackend(kv, ropes)
        self._in_pages = kv.page_size % PAGE_MULTIPLE == 0

    def plan(self, inputs: AttentionInputs) -> FlashAttnPlan:
        """Sort rows into calls, and send all indices to the device in one copy."""
        query_len = np.diff(inputs.query_start)
        arrays: dict[str, NDArray[Any]] = dict(host_arrays(inputs))
        singles = np.flatnonzero(query_len == 1)
        if not self._in_pages or self._functions.with_kvcache is None:
            singles = singles[:0]  # left to our kernels
        if len(singles):
            arrays["single_tokens"] = inputs.query_start[singles].astype(np.int64)
            arrays["single_contexts"] = inputs.context_len[singles]
            arrays["single_pages"] = np.ascontiguousarray(inputs.page_table[singles])
        groups = self._groups(np.flatnonzero(query_len > 1), inputs.context_len)
        for index, rows in enumerate(groups):
            arrays |= self._chunk_arrays(inputs, rows, f"chunk{index}")
        moved = to_device(arrays, self.kv.data.device)
        chunks = [
            Chunk(
                tokens=moved.get(f"chunk{index}_tokens"),
                query_start=moved[f"chunk{index}_query_start"],
                key_start=moved[f"chunk{index}_key_start"],
                longest_query=int(query_len[rows].max()),
                longest_context=int(inputs.context_len[rows].max()),
                slots=moved.get(f"chunk{index}_slots"),
                page_table=moved.get(f"chunk{index}_pages"),
            )
            for index, rows in enumerate(groups)
        ]
        own = self._own.plan_on_device(inputs, moved)
        if not len(singles):
            return FlashAttnPlan(self._functions, own, chunks, None)
        of_singles = Singles(moved["single_tokens"], moved["single_contexts"], moved["single_pages"])
        return FlashAttnPlan(self._functions, own, chunks, of_singles)

    def static_plan(self, inputs: StaticInputs) -> TritonPlan:
        """Return our own kernels' plan."""
        return self._own.static_plan(inputs)

    def _groups(self, rows: NDArray[np.integer[Any]], context_len: NDArray[np.int32]) -> list[list[int]]:
        """Share rows out among calls."""
        if self._reads_pages():
            return [rows.tolist()] if len(rows) else []
        groups: list[list[int]] = []
        gathered = MAX_GATHERED_TOKENS
        for row in rows.tolist():
            gathered += int(context_len[row])
            if gathered > MAX_GATHERED_TOKENS:
                groups.append([])
                gathered = int(context_len[row])
            groups[-1].append(row)
        return groups

    def _reads_pages(self) -> bool:
        """Whether prefixes are read in their pages, which is flash-attn 2.8's business."""
        return self._in_pages and self._functions.hopper_varlen is None

    def _chunk_arrays(self, inputs: AttentionInputs, rows: list[int], name: str) -> dict[str, NDArray[Any]]:
        spans = [(int(inputs.query_start[row]), int(inputs.query_start[row + 1])) for row in rows]
        contexts = inputs.context_len[rows]
        arrays: dict[str, NDArray[Any]] = {
            f"{name}_query_start": np.cumsum([0, *(end - start for start, end in spans)], dtype=np.int32),
            f"{name}_key_start": np.cumsum([0, *contexts], dtype=np.int32),
        }
        if len(rows) < len(inputs.context_len):
            arrays[f"{name}_tokens"] = np.concatenate([np.arange(*span) for span in spans])
        if self._reads_pages():
            arrays[f"{name}_pages"] = np.ascontiguousarray(inputs.page_table[rows])
            return arrays
        size = self.kv.page_size
        arrays[f"{name}_slots"] = np.concatenate(
            [
                inputs.page_table[row, np.arange(context) // size].astype(np.int64) * size
                + np.arange(context) % size
                for row, context in zip(rows, contexts.tolist(), strict=True)
            ]
        )
        return arrays
