"""The protocol between models and attention back ends.

A back end does all that lies between the QKV projection and the output projection: normalise queries and keys
where a model does so, rotate them, store keys and values in their pages, attend.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

from torch import Tensor

from rhizome_engine.batch import Int32


@dataclass(frozen=True, slots=True)
class AttentionLayer:
    """What distinguishes one layer's attention; fixed when the model is made.

    Attributes:
        index: of the layer in the KV pool.
        num_heads: query heads; head h reads key-value head h * num_kv_heads // num_heads.
        num_kv_heads: key and value heads.
        head_dim: width of a head.
        scale: of the scores, usually 1 / sqrt(head_dim).
        softcap: scores become softcap * tanh(score / softcap); 0 for none.
        window: a token sees itself and the window - 1 tokens before it; 0 for all.
        rope: which of the model's rotary tables turns this layer's queries and keys; None for none.
        q_norm: [head_dim] float32 gain of the RMS norm of each query head before rotation; None for none.
        k_norm: the same for keys.
        norm_eps: of these norms.
    """

    index: int
    num_heads: int
    num_kv_heads: int
    head_dim: int
    scale: float
    softcap: float = 0.0
    window: int = 0
    rope: int | None = 0
    q_norm: Tensor | None = None
    k_norm: Tensor | None = None
    norm_eps: float = 1e-6


@dataclass(frozen=True, slots=True)
class AttentionInputs:
    """What a back end needs to know of a step; the index arrays are those of `Batch`, on the host.

    Attributes:
        positions: [num_tokens] int64 on the device.
        slot_mapping: [num_tokens] int64 on the device.
        query_start: [num_rows + 1].
        context_len: [num_rows], the row's new tokens included.
        page_table: [num_rows, max_pages].
    """

    positions: Tensor
    slot_mapping: Tensor
    query_start: Int32
    context_len: Int32
    page_table: Int32


@dataclass(frozen=True, slots=True)
class StaticInputs:
    """A step whose arrays lie on the device, at fixed addresses and in fixed shapes.

    Plans are made of these to be recorded once and replayed: their contents change from replay to replay, the
    tensors never do. What is not used in a replay is padding, and its result is 0.

    Attributes:
        positions: [num_tokens] int64.
        slot_mapping: [num_tokens] int64; negative for a padding token, of which nothing is stored.
        query_start: [num_rows + 1] int32; tokens from the last entry on are padding.
        context_len: [num_rows] int32, the row's new tokens included; 0 for a padding row.
        row_slots: [num_rows] int32, the row of `page_table` that belongs to each row.
        page_table: [num_slots, max_pages] int32.
        is_decode: every row has exactly one token, so that token t belongs to row t.
    """

    positions: Tensor
    slot_mapping: Tensor
    query_start: Tensor
    context_len: Tensor
    row_slots: Tensor
    page_table: Tensor
    is_decode: bool


class AttentionPlan(Protocol):
    """One step's attention."""

    def attend(self, layer: AttentionLayer, qkv: Tensor) -> Tensor:
        """Store the new keys and values, then let each token see its row up to and including itself.

        Args:
            layer: which layer, and its peculiarities.
            qkv: [num_tokens, (num_heads + 2 * num_kv_heads) * head_dim], as projected: queries, keys, values.

        Returns:
            [num_tokens, num_heads * head_dim], valid until the next call
        """
        ...


class AttentionBackend(Protocol):
    """Turns steps into plans: everything that does not depend on the layer is done once, here."""

    name: str

    def plan(self, inputs: AttentionInputs) -> AttentionPlan:
        """Prepare indices, masks and rotary tables of a step."""
        ...

    def static_plan(self, inputs: StaticInputs) -> AttentionPlan | None:
        """Return a plan that launches the same kernels whatever the tensors hold; None where there is none.

        Making the plan is part of what is recorded: it may launch kernels (the rotary tables of the step) and
        take memory, but reads nothing back from the device.
        """
        ...
