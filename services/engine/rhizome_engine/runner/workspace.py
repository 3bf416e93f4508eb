"""How much memory the largest step takes beside weights and KV pool: bounds, written down term by term."""

from __future__ import annotations

from dataclasses import dataclass

from rhizome_engine.attention.sdpa import MAX_GATHERED_TOKENS
from rhizome_engine.checkpoint.model_config import ModelConfig

_PROMPT_SCORES = 64 * 2**20
"""What scoring prompt tokens may take, see `sampling.prompt_logprobs`."""
_SAMPLING_COPIES = 6
"""Logits in float32 and what sampling makes of them, each [rows, vocab_size]."""


@dataclass(frozen=True, slots=True)
class Workspace:
    """What the bounds depend on.

    Attributes:
        config: of the model.
        num_tokens: of the largest step.
        num_rows: of the largest step.
        kv_element: bytes of an element of the KV pool.
        gathers: attention copies keys and values together and masks them, instead of reading them in place.
        unpacked: bytes that one product may take to turn integers into floating point.
    """

    config: ModelConfig
    num_tokens: int
    num_rows: int
    kv_element: int
    gathers: bool
    unpacked: int = 0

    def num_bytes(self, context: int) -> int:
        """Return a bound for contexts of at most so many tokens."""
        return self._activations() + self._attention(context) + self._logits() + self.unpacked

    def _activations(self) -> int:
        """Residuals beside the widest point, in float32: around attention, or inside the feed-forward."""
        config = self.config
        heads = (config.num_heads + 2 * config.num_kv_heads) * config.head_dim
        # As projected, normalised, rotated, and in the pool's type; then what attention returns.
        attention = 4 * heads + 2 * config.num_heads * config.head_dim
        size = config.intermediate_size
        if config.experts is not None:
            size = max(size, config.experts.intermediate_size)
            attention += 3 * config.experts.num_experts
        # Gate and up, the activated gate, the product.
        feed_forward = 4 * size
        return 4 * self.num_tokens * (4 * config.hidden_size + max(attention, feed_forward))

    def _attention(self, context: int) -> int:
        if not self.gathers:
            return 0
        config = self.config
        tokens = self.num_tokens
        # Distances in int64, what they hide in bool, a mask per window and one under construction.
        windows = len({layer.window for layer in config.layers})
        masks = tokens * context * (8 + 2 + self.kv_element * (windows + 1))
        if config.attention_softcap:  # scores are written out, with two temporaries
            masks += 3 * 4 * tokens * context * config.num_heads
        width = config.num_kv_heads * config.head_dim * self.kv_element
        return masks + 3 * max(context, MAX_GATHERED_TOKENS) * width

    def _logits(self) -> int:
        return max(4 * self.num_rows * self.config.vocab_size * _SAMPLING_COPIES, _PROMPT_SCORES)
