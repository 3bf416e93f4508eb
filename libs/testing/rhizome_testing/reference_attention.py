"""An attention back end with static plans, in PyTorch alone, for recorded steps on any machine."""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import Tensor

from rhizome_engine.attention.base import AttentionInputs, AttentionLayer, StaticInputs
from rhizome_engine.attention.paged_kv import PagedKV
from rhizome_engine.attention.reference import attend, store
from rhizome_engine.layers.rotary import Rope


class ReferencePlan:
    """The reference of the attention kernels over the arrays of a step."""

    def __init__(self, kv: PagedKV, ropes: Iterable[Rope], inputs: StaticInputs) -> None:
        self._kv = kv
        self._inputs = inputs
        self._tables = [rope.table(inputs.positions) for rope in ropes]

    def attend(self, layer: AttentionLayer, qkv: Tensor) -> Tensor:
        """See `AttentionPlan`."""
        inputs, (keys, values) = self._inputs, self._kv.layer(layer.index)
        q = qkv.new_empty(len(qkv), layer.num_heads, layer.head_dim)
        table = None if layer.rope is None else self._tables[layer.rope]
        store(layer, qkv, table, inputs.slot_mapping, keys, values, q)
        indices = (inputs.query_start, inputs.context_len, inputs.row_slots, inputs.page_table)
        return attend(layer, q, keys, values, *indices).flatten(1).to(qkv.dtype)


class ReferenceBackend:
    """Plans of both kinds; those of static arrays read them when they are used."""

    name = "reference"

    def __init__(self, kv: PagedKV, ropes: Iterable[Rope]) -> None:
        self.kv = kv
        self.ropes = list(ropes)

    def plan(self, inputs: AttentionInputs) -> ReferencePlan:
        """See `AttentionBackend`."""
        arrays = map(torch.from_numpy, (inputs.query_start, inputs.context_len, inputs.page_table))
        query_start, context_len, page_table = arrays
        rows = torch.arange(len(context_len), dtype=torch.int32)
        return self.static_plan(
            StaticInputs(
                positions=inputs.positions,
                slot_mapping=inputs.slot_mapping,
                query_start=query_start,
                context_len=context_len,
                row_slots=rows,
                page_table=page_table,
                is_decode=False,
            )
        )

    def static_plan(self, inputs: StaticInputs) -> ReferencePlan:
        """See `AttentionBackend`."""
        return ReferencePlan(self.kv, self.ropes, inputs)
