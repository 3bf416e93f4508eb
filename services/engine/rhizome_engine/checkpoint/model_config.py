"""A model's shape, read from `config.json`."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from rhizome_engine.checkpoint.errors import CheckpointError
from rhizome_engine.checkpoint.json_fields import JsonFields

RopeKind = Literal["default", "linear", "llama3"]


@dataclass(frozen=True, slots=True)
class RopeConfig:
    """How positions turn into angles.

    Attributes:
        theta: base of the frequencies.
        kind: which scaling; the fields below are read by the kinds that need them.
        factor: how many times the context was stretched (linear, llama3).
        low_freq_factor: wavelengths above `original_max_position / this` are stretched fully (llama3).
        high_freq_factor: wavelengths below `original_max_position / this` are left alone (llama3).
        original_max_position: context length before stretching (llama3).
    """

    theta: float = 10000.0
    kind: RopeKind = "default"
    factor: float = 1.0
    low_freq_factor: float = 1.0
    high_freq_factor: float = 4.0
    original_max_position: int = 8192


@dataclass(frozen=True, slots=True)
class ModelConfig:
    """The shape of a decoder-only transformer, in the field's names.

    Attributes:
        architecture: class name in `config.json`, the key of the model registry.
        dtype: in which the weights are stored ("bfloat16"), "" where the file does not say.
        eos_token_ids: ids that end a sequence, from this file only; see `Checkpoint.eos_token_ids`.
        bos_token_id: None where there is none.
    """

    architecture: str
    vocab_size: int
    hidden_size: int
    intermediate_size: int
    num_layers: int
    num_heads: int
    num_kv_heads: int
    head_dim: int
    rms_norm_eps: float
    max_position_embeddings: int
    rope: RopeConfig
    tie_word_embeddings: bool
    attention_bias: bool
    mlp_bias: bool
    dtype: str
    bos_token_id: int | None
    eos_token_ids: tuple[int, ...]

    def kv_bytes_per_token(self, element_bytes: int) -> int:
        """Bytes that one token's keys and values take in all layers."""
        return 2 * self.num_layers * self.num_kv_heads * self.head_dim * element_bytes


def parse_model_config(fields: JsonFields, known_architectures: tuple[str, ...]) -> ModelConfig:
    """Turn `config.json` into a `ModelConfig`.

    Absent keys take the defaults of transformers' `LlamaConfig`, because `save_pretrained` may leave out
    what equals a default.

    Raises:
        CheckpointError: the architecture is unknown, or a value is unusable or not implemented.
    """
    architecture = _architecture(fields, known_architectures)
    if "quantization_config" in fields:
        raise CheckpointError(
            f"{fields.where}: the weights are quantised (quantization_config); use the unquantised checkpoint"
        )
    activation = fields.values.get("hidden_act", "silu")
    if activation not in ("silu", "swish"):
        raise CheckpointError(f"{fields.where}: hidden_act {activation!r} is not supported; known: silu")

    hidden_size = fields.integer("hidden_size")
    num_heads = fields.integer("num_attention_heads")
    num_kv_heads = fields.integer("num_key_value_heads", num_heads)
    if num_heads % num_kv_heads:
        raise CheckpointError(
            f"{fields.where}: num_attention_heads {num_heads} must be a multiple of "
            f"num_key_value_heads {num_kv_heads}"
        )
    if "head_dim" not in fields and hidden_size % num_heads:
        raise CheckpointError(
            f"{fields.where}: without head_dim, hidden_size {hidden_size} must be a multiple of "
            f"num_attention_heads {num_heads}"
        )
    head_dim = fields.integer("head_dim", hidden_size // num_heads)
    if head_dim % 2:
        raise fields.bad("head_dim", "even, because rotary embeddings rotate pairs")
    max_position = fields.integer("max_position_embeddings", 2048)
    return ModelConfig(
        architecture=architecture,
        vocab_size=fields.integer("vocab_size"),
        hidden_size=hidden_size,
        intermediate_size=fields.integer("intermediate_size"),
        num_layers=fields.integer("num_hidden_layers"),
        num_heads=num_heads,
        num_kv_heads=num_kv_heads,
        head_dim=head_dim,
        rms_norm_eps=fields.number("rms_norm_eps", 1e-6),
        max_position_embeddings=max_position,
        rope=parse_rope(fields, max_position),
        tie_word_embeddings=fields.flag("tie_word_embeddings", False),
        attention_bias=fields.flag("attention_bias", False),
        mlp_bias=fields.flag("mlp_bias", False),
        dtype=str(fields.values.get("dtype", fields.values.get("torch_dtype", ""))),
        bos_token_id=next(iter(fields.token_ids("bos_token_id")), None),
        eos_token_ids=fields.token_ids("eos_token_id"),
    )


def parse_rope(fields: JsonFields, max_position: int) -> RopeConfig:
    """Read rotary settings: `rope_theta` + `rope_scaling`, or transformers 5's `rope_parameters`.

    Raises:
        CheckpointError: an unknown kind, or a value out of range.
    """
    section = fields.section("rope_parameters") or fields.section("rope_scaling")
    for holder in (fields, section or fields):
        if holder.number("partial_rotary_factor", 1.0) != 1.0:
            raise holder.bad("partial_rotary_factor", "1, because only whole heads can be rotated")
    if section is None:
        return RopeConfig(theta=fields.number("rope_theta", 10000.0))
    theta = section.number("rope_theta", fields.number("rope_theta", 10000.0))
    # "type" is the older spelling of the key.
    kind = section.values.get("rope_type", section.values.get("type", "default"))
    if kind == "default":
        return RopeConfig(theta=theta)
    if kind == "linear":
        return RopeConfig(theta=theta, kind="linear", factor=section.number("factor"))
    if kind == "llama3":
        low, high = section.number("low_freq_factor"), section.number("high_freq_factor")
        if low >= high:
            raise section.bad("low_freq_factor", f"below high_freq_factor {high:g}")
        return RopeConfig(
            theta=theta,
            kind="llama3",
            factor=section.number("factor"),
            low_freq_factor=low,
            high_freq_factor=high,
            original_max_position=section.integer("original_max_position_embeddings", max_position),
        )
    raise CheckpointError(
        f"{section.where}: rope_type {kind!r} is not supported; known: default, linear, llama3"
    )


def _architecture(fields: JsonFields, known: tuple[str, ...]) -> str:
    names = fields.values.get("architectures", [])
    if isinstance(names, list):
        for name in names:
            if name in known:
                return str(name)
    raise CheckpointError(
        f"{fields.where}: no supported architecture in architectures {names!r} "
        f"(model_type {fields.values.get('model_type')!r}); supported: {', '.join(known)}"
    )
