"""The protocol between models and attention back ends."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

from torch import Tensor

from rhizome_engine.batch import Int32


@dataclass(frozen=True, slots=True)
class AttentionInputs:
    """What a back end needs to know of a step; the index arrays are those of `Batch`, on the host.

    Attributes:
        slot_mapping: [num_tokens] int64 on the device.
        query_start: [num_rows + 1].
        context_len: [num_rows], the row's new tokens included.
        page_table: [num_rows, max_pages].
    """

    slot_mapping: Tensor
    query_start: Int32
    context_len: Int32
    page_table: Int32


class AttentionPlan(Protocol):
    """One step's attention, the same for every layer."""

    def attend(self, layer: int, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        """Store the new keys and values, then let each token see its row up to and including itself.

        Args:
            layer: index of the layer.
            q: [num_tokens, num_heads, head_dim], rotated.
            k: [num_tokens, num_kv_heads, head_dim], rotated.
            v: like k.

        Returns:
            [num_tokens, num_heads, head_dim]
        """
        ...


class AttentionBackend(Protocol):
    """Turns steps into plans: everything that does not depend on the layer is done once, here."""

    name: str

    def plan(self, inputs: AttentionInputs) -> AttentionPlan:
        """Prepare indices and masks of a step."""
        ...
