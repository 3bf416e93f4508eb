"""Which model class serves which architecture.

The table holds import paths rather than classes: reading a checkpoint's config then needs no model code, and
a family's imports are paid only by those who use it.
"""

from __future__ import annotations

from collections.abc import Mapping
from importlib import import_module
from typing import Any, Protocol

import torch
from torch import Tensor

from rhizome_engine.attention.base import AttentionPlan

ARCHITECTURES = {
    "LlamaForCausalLM": "rhizome_engine.models.llama:LlamaForCausalLM",
}


class CausalLM(Protocol):
    """What the runner asks of a model."""

    def hidden_states(self, token_ids: Tensor, positions: Tensor, attention: AttentionPlan) -> Tensor:
        """Run all layers over a ragged batch.

        Args:
            token_ids: [num_tokens] int64.
            positions: [num_tokens] int64.
            attention: this step's plan; it also stores the new keys and values.

        Returns:
            [num_tokens, hidden_size]
        """
        ...

    def logits(self, hidden: Tensor) -> Tensor:
        """Project [n, hidden_size] to float32 [n, vocab_size]; called only for tokens that need it."""
        ...

    def weight_targets(self) -> Mapping[str, Tensor]:
        """Map the checkpoint's tensor names to the (parts of) parameters they fill."""
        ...


def build_model(architecture: str, config: Any, *, device: torch.device, dtype: torch.dtype) -> CausalLM:
    """Make the model of an architecture, its parameters allocated but not filled.

    Args:
        architecture: a key of `ARCHITECTURES`.
        config: the checkpoint's `ModelConfig`.
        device: where the parameters live; "meta" costs nothing and tells the sizes.
        dtype: of the parameters.

    Raises:
        KeyError: unknown architecture; `load_checkpoint` refuses it earlier and in words.
    """
    module_name, class_name = ARCHITECTURES[architecture].split(":")
    model: CausalLM = getattr(import_module(module_name), class_name)(config, device=device, dtype=dtype)
    return model
