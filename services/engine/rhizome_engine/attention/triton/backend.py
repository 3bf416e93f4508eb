"""Attention in Triton: plans of steps, and of what is recorded.

A step is two launches per layer where all rows decode (decode and reduce; without the latter where there are
rows enough to fill the device), two where all prefill (store, extend) and up to four where both mix.
Which rows are whose is decided on the device, so a recorded step serves any mix of its size.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from rhizome_engine.attention.base import AttentionInputs, AttentionLayer, StaticInputs
from rhizome_engine.attention.paged_kv import PagedKV
from rhizome_engine.attention.triton.decode import Fresh, block_size, decode
from rhizome_engine.attention.triton.extend import Tiles, extend, tiles
from rhizome_engine.attention.triton.parts import Parts, num_parts
from rhizome_engine.attention.triton.store import store
from rhizome_engine.attention.triton.turns import turns
from rhizome_engine.kernels.triton.runtime import interpreted, why_not
from rhizome_engine.layers.rotary import Rope
from rhizome_engine.sampling.staging import to_device

MAX_HEAD_DIM = 256
POOL_DTYPES = (torch.float32, torch.bfloat16, torch.float16)
_LARGE_SHARED_MEMORY = ((8, 0), (9, 0), (10, 0), (10, 3))
"""Compute capabilities of GPUs whose programs get more than 160 KiB of shared memory."""
_INTERPRETED_MULTIPROCESSORS = 4
"""In the interpreter nothing runs at once; some parts are made all the same, for them to be tested."""


def why_not_pool(dtype: torch.dtype, head_dim: int) -> str | None:
    """Return why the kernels cannot read a pool of this type and width of heads, None where they can."""
    if dtype not in POOL_DTYPES:
        return f"it cannot read a KV pool of {dtype}"
    if head_dim % 2 or not 2 <= head_dim <= MAX_HEAD_DIM:
        return f"it needs heads of 2, 4, ... {MAX_HEAD_DIM}, not {head_dim}"
    return None


class Scratch:
    """Memory that results are made in, used again by every layer, and by the next step where it suffices."""

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._buffers: dict[tuple[str, torch.dtype], Tensor] = {}

    def take(self, name: str, shape: tuple[int, ...], dtype: torch.dtype) -> Tensor:
        """Return a tensor that stays valid until the name is taken again; its contents are arbitrary."""
        size = math.prod(shape)
        buffer = self._buffers.get((name, dtype))
        if buffer is None or len(buffer) < size:
            buffer = self._buffers[name, dtype] = torch.empty(size, dtype=dtype, device=self._device)
        return buffer[:size].view(shape)


class TritonPlan:
    """See `AttentionPlan`.

    Args:
        backend: made it.
        inputs: the step, on the device.
        scratch: where results are made.
        singles: there may be rows of one new token which are not left to `extend`.
        chunks: there may be rows of more tokens, or padding between the rows and the end.
    """

    def __init__(
        self, backend: TritonBackend, inputs: StaticInputs, scratch: Scratch, *, singles: bool, chunks: bool
    ) -> None:
        self.inputs = inputs
        self.scratch = scratch
        self._backend = backend
        self.has_singles = singles
        self._chunks = chunks
        self._tables: dict[int, tuple[Tensor, Tensor]] = {}

    def attend(self, layer: AttentionLayer, qkv: Tensor) -> Tensor:
        """Store the new keys and values and attend; shapes as in `AttentionPlan.attend`.

        Raises:
            ValueError: `qkv` or the layer does not fit.
        """
        out = self.scratch.take("out", (len(qkv), layer.num_heads, layer.head_dim), qkv.dtype)
        if self.inputs.is_decode:
            self.decode(layer, self._fresh(layer, qkv), out)
            return out.view(len(qkv), -1)
        q = self.store(layer, qkv)
        if self.has_singles:
            self.decode(layer, q, out)
        if self._chunks:
            self.extend(layer, q, out)
        return out.view(len(qkv), -1)

    def store(self, layer: AttentionLayer, qkv: Tensor) -> Tensor:
        """Write keys and values to their slots.

        Returns:
            [num_tokens, num_heads, head_dim] of the pool's type: queries ready to attend
        """
        keys, values = self.pages_of(layer)
        qkv, table, slot_mapping = self._fresh(layer, qkv)
        q = self.scratch.take("q", (len(qkv), layer.num_heads, layer.head_dim), keys.dtype)
        store(layer, qkv, table, slot_mapping, keys, values, q)
        return q

    def pages_of(self, layer: AttentionLayer) -> tuple[Tensor, Tensor]:
        """Return a layer's keys and values, as the back end does."""
        return self._backend.pages_of(layer)

    def decode(self, layer: AttentionLayer, q: Tensor | Fresh, out: Tensor) -> None:
        """Attend rows of one new token."""
        keys, values = self.pages_of(layer)
        inputs = self.inputs
        decode(
            layer,
            q,
            keys,
            values,
            out,
            self._parts(layer),
            inputs.query_start,
            inputs.context_len,
            inputs.row_slots,
            inputs.page_table,
            one_each=inputs.is_decode,
            wide=self._backend.wide,
        )

    def extend(self, layer: AttentionLayer, q: Tensor, out: Tensor) -> None:
        """Attend the other rows."""
        keys, values = self.pages_of(layer)
        inputs = self.inputs
        extend(
            layer,
            q,
            keys,
            values,
            out,
            inputs.query_start,
            inputs.context_len,
            inputs.row_slots,
            inputs.page_table,
            self._backend.tiles(len(q)),
            skip_singles=self.has_singles,
            wide=self._backend.wide,
        )

    def _fresh(self, layer: AttentionLayer, qkv: Tensor) -> Fresh:
        """Name what the step brings, once it is checked."""
        self.pages_of(layer)  # raises where the layer does not fit
        width = (layer.num_heads + 2 * layer.num_kv_heads) * layer.head_dim
        if qkv.shape != (len(self.inputs.positions), width) or not qkv.is_contiguous():
            raise ValueError(
                f"qkv must be contiguous [{len(self.inputs.positions)}, {width}], not {list(qkv.shape)}"
            )
        table = None if layer.rope is None else self._table(layer.rope)
        return Fresh(qkv, table, self.inputs.slot_mapping)

    def _table(self, rope: int) -> tuple[Tensor, Tensor]:
        """Return cosines and sines of the step, made by the first layer that wants them."""
        if rope not in self._tables:
            self._tables[rope] = turns(self._backend.ropes[rope], self.inputs.positions)
        return self._tables[rope]

    def _parts(self, layer: AttentionLayer) -> Parts:
        rows = len(self.inputs.context_len)
        longest = self.inputs.page_table.shape[1] * self._backend.kv.page_size
        count = self._backend.num_parts(rows, layer, longest)
        shape = (rows, layer.num_heads, count) if count > 1 else (0, 0, 0)
        take = self.scratch.take
        return Parts(
            count,
            weighted=take("weighted", (*shape, layer.head_dim), torch.float32),
            top=take("top", shape, torch.float32),
            total=take("total", shape, torch.float32),
        )


def host_arrays(inputs: AttentionInputs) -> dict[str, NDArray[np.int32]]:
    """Return the index arrays of a step under the names they have in `StaticInputs`."""
    return {
        "query_start": np.ascontiguousarray(inputs.query_start, np.int32),
        "context_len": np.ascontiguousarray(inputs.context_len, np.int32),
        "row_slots": np.arange(len(inputs.context_len), dtype=np.int32),
        "page_table": np.ascontiguousarray(inputs.page_table, np.int32),
    }


class TritonBackend:
    """See `AttentionBackend`.

    Args:
        kv: the pool, in float32, bfloat16 or float16.
        ropes: the model's rotary embeddings.

    Raises:
        ValueError: Triton cannot run here, or the pool is none that the kernels can read.
    """

    name = "triton"

    def __init__(self, kv: PagedKV, ropes: Sequence[Rope]) -> None:
        reason = why_not(kv.data.device) or why_not_pool(kv.data.dtype, kv.data.shape[-1])
        if reason is not None:
            raise ValueError(f"triton attention cannot run: {reason}")
        self.kv = kv
        self.ropes = list(ropes)
        self.device = kv.data.device
        self.wide = interpreted() and kv.data.dtype == torch.bfloat16
        self._pages: list[tuple[AttentionLayer, Tensor, Tensor] | None] = [None] * len(kv.data)
        self._scratch = Scratch(self.device)
        self._multiprocessors = _INTERPRETED_MULTIPROCESSORS
        self._large_shared_memory = self._hopper = False
        if self.device.type == "cuda" or (self.device.type == "meta" and torch.cuda.is_available()):
            # Without memory, "meta", it is for the GPU that the thread has chosen.
            gpu = self.device if self.device.type == "cuda" else torch.device("cuda")
            self._multiprocessors = torch.cuda.get_device_properties(gpu).multi_processor_count
            capability = torch.cuda.get_device_capability(gpu)
            self._large_shared_memory = capability in _LARGE_SHARED_MEMORY
            self._hopper = capability == (9, 0)

    def plan(self, inputs: AttentionInputs) -> TritonPlan:
        """Send the step's indices to the device, in one copy."""
        return self.plan_on_device(inputs, to_device(host_arrays(inputs), self.device))

    def plan_on_device(self, inputs: AttentionInputs, arrays: Mapping[str, Tensor]) -> TritonPlan:
        """Plan a step whose `host_arrays` are on the device already, maybe beside others."""
        query_len = np.diff(inputs.query_start)
        singles, chunks = bool((query_len == 1).any()), bool((query_len != 1).any())
        step = StaticInputs(
            positions=inputs.positions,
            slot_mapping=inputs.slot_mapping,
            query_start=arrays["query_start"],
            context_len=arrays["context_len"],
            row_slots=arrays["row_slots"],
            page_table=arrays["page_table"],
            is_decode=not chunks,
        )
        return TritonPlan(self, step, self._scratch, singles=singles, chunks=chunks)

    def static_plan(self, inputs: StaticInputs) -> TritonPlan:
        """See `AttentionBackend`; the plan has memory of its own, as what is recorded keeps its addresses."""
        # A step of one row has no use for two kinds of attention: `extend` serves a single token as well.
        singles = inputs.is_decode or len(inputs.context_len) > 1
        scratch = Scratch(self.device)
        return TritonPlan(self, inputs, scratch, singles=singles, chunks=not inputs.is_decode)

    def pages_of(self, layer: AttentionLayer) -> tuple[Tensor, Tensor]:
        """Return a layer's keys and values, each [num_pages, page_size, num_kv_heads, head_dim].

        Raises:
            ValueError: the layer does not fit the pool or the model's rotary tables.
        """
        known = self._pages[layer.index]
        if known is None or known[0] is not layer:
            known = self._pages[layer.index] = (layer, *self._check(layer))
        return known[1:]

    def tiles(self, num_tokens: int) -> Tiles:
        """How `extend` is cut for a step of so many tokens."""
        head_dim, element = self.kv.data.shape[-1], self.kv.data.element_size()
        large = self._large_shared_memory
        return tiles(num_tokens, head_dim, element, large_shared_memory=large, hopper=self._hopper)

    def num_parts(self, num_rows: int, layer: AttentionLayer, longest_context: int) -> int:
        """Into how many parts `decode` cuts each row's context."""
        block = block_size(layer.head_dim, self.kv.data.element_size())
        return num_parts(num_rows, layer.num_kv_heads, longest_context, block, self._multiprocessors)

    def _check(self, layer: AttentionLayer) -> tuple[Tensor, Tensor]:
        keys, values = self.kv.layer(layer.index)
        if keys.shape[-2:] != (layer.num_kv_heads, layer.head_dim):
            raise ValueError(
                f"layer {layer.index} has {layer.num_kv_heads} key-value heads of {layer.head_dim}, "
                f"but the KV pool was made for {keys.shape[-2]} of {keys.shape[-1]}"
            )
        if layer.num_heads % layer.num_kv_heads:
            raise ValueError(
                f"{layer.num_heads} heads cannot share {layer.num_kv_heads} key-value heads evenly"
            )
        if layer.rope is not None and not 0 <= layer.rope < len(self.ropes):
            raise ValueError(f"layer {layer.index} uses rotary table {layer.rope} of {len(self.ropes)}")
        for gain in (layer.q_norm, layer.k_norm):
            if gain is not None and (gain.dtype != torch.float32 or gain.shape != (layer.head_dim,)):
                raise ValueError(
                    f"a head's gain must be {layer.head_dim} float32, not {gain.dtype} {list(gain.shape)}"
                )
        return keys, values
