"""A decoder-only transformer described by its numbers: enough for every family that is served.

A family's file in `models/` turns `config.json` into this; what it leaves out keeps the defaults, which are
Llama's.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from rhizome_engine.checkpoint.rope_config import RopeConfig

Activation = Literal["silu", "gelu_tanh"]


@dataclass(frozen=True, slots=True)
class LayerConfig:
    """What may differ from layer to layer.

    Attributes:
        window: a token sees itself and the window - 1 tokens before it; 0 for all.
        rope: index into `ModelConfig.ropes`; None where positions are not encoded.
        experts: whether the feed-forward is a mixture of experts.
    """

    window: int = 0
    rope: int | None = 0
    experts: bool = False


@dataclass(frozen=True, slots=True)
class ExpertsConfig:
    """A mixture of experts.

    Attributes:
        num_experts: in each layer that has them.
        experts_per_token: that see a token.
        intermediate_size: of one expert.
        normalise: divide the chosen experts' probabilities by their sum.
    """

    num_experts: int
    experts_per_token: int
    intermediate_size: int
    normalise: bool = True


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelConfig:
    """The shape of a decoder-only transformer, in the field's names.

    Attributes:
        architecture: class name in `config.json`, the key of the model registry, which sets it.
        head_dim: width of an attention head; heads together may be wider than `hidden_size`.
        max_position_embeddings: longest context.
        ropes: the distinct rotary embeddings.
        layers: one entry per layer.
        tie_word_embeddings: the output layer is the embedding.
        qkv_bias: the projections to queries, keys and values have a bias.
        output_bias: the projection after attention has one.
        mlp_bias: the feed-forward has one.
        dtype: in which the weights are stored ("bfloat16"), "" where the file does not say.
        bos_token_id: None where there is none.
        eos_token_ids: ids that end a sequence, from this file only; see `Checkpoint.eos_token_ids`.
        activation: of the feed-forward's gate.
        qk_norm: queries and keys are normalised per head before rotation.
        norm_plus_one: gains of norms are stored minus 1.
        post_norms: what attention and feed-forward return is normalised before it is added.
        embedding_multiplier: for embeddings.
        residual_multiplier: for what each block adds.
        logits_multiplier: for logits, before their soft cap.
        logits_softcap: logits become softcap * tanh(logits / softcap); 0 for none.
        attention_scale: of attention scores; None for 1 / sqrt(head_dim).
        attention_softcap: the same as for logits, for attention scores.
        experts: of the layers that have them.
    """

    architecture: str = ""
    vocab_size: int
    hidden_size: int
    intermediate_size: int
    num_heads: int
    num_kv_heads: int
    head_dim: int
    rms_norm_eps: float
    max_position_embeddings: int
    ropes: tuple[RopeConfig, ...]
    layers: tuple[LayerConfig, ...]
    tie_word_embeddings: bool
    qkv_bias: bool = False
    output_bias: bool = False
    mlp_bias: bool = False
    dtype: str = ""
    bos_token_id: int | None = None
    eos_token_ids: tuple[int, ...] = ()
    activation: Activation = "silu"
    qk_norm: bool = False
    norm_plus_one: bool = False
    post_norms: bool = False
    embedding_multiplier: float = 1.0
    residual_multiplier: float = 1.0
    logits_multiplier: float = 1.0
    logits_softcap: float = 0.0
    attention_scale: float | None = None
    attention_softcap: float = 0.0
    experts: ExpertsConfig | None = None

    @property
    def num_layers(self) -> int:
        """How many layers there are."""
        return len(self.layers)

    def kv_bytes_per_token(self, element_bytes: int) -> int:
        """Bytes that one token's keys and values take in all layers."""
        return 2 * self.num_layers * self.num_kv_heads * self.head_dim * element_bytes
