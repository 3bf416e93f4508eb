"""What tells one family of checkpoints from another: how `config.json` reads, and what tensors are called."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from rhizome_engine.checkpoint.errors import CheckpointError
from rhizome_engine.checkpoint.json_fields import JsonFields
from rhizome_engine.checkpoint.model_config import Activation, LayerConfig, ModelConfig
from rhizome_engine.checkpoint.rope_config import parse_rope, stretched_context
from rhizome_engine.models.refused import refuse_what_is_not_computed
from rhizome_engine.models.stored_layout import StoredLayout, with_prefix

ACTIVATIONS: dict[str, Activation] = {
    "silu": "silu",
    "swish": "silu",
    "gelu_pytorch_tanh": "gelu_tanh",
    "gelu_new": "gelu_tanh",
}


@dataclass(frozen=True, slots=True, kw_only=True)
class TensorNames:
    """Names of a checkpoint's modules; the defaults are those of transformers' Llama.

    Attributes:
        layer: before the names of a layer's modules, with its index.
        qkv: modules whose rows, one after the other, are the QKV projection.
        gate_up: the same for the feed-forward's first projection.
        post_attention_norm: normalises what attention returns, where a family does so.
        post_mlp_norm: the same for the feed-forward.
        router: of a mixture of experts.
        expert: before the names of an expert's modules, with its index.
        expert_gate_up: as `gate_up`.
        expert_down: as `down`.
    """

    embedding: str = "model.embed_tokens"
    final_norm: str = "model.norm"
    head: str = "lm_head"
    layer: str = "model.layers.{layer}."
    attention_norm: str = "input_layernorm"
    qkv: tuple[str, ...] = ("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj")
    q_norm: str = "self_attn.q_norm"
    k_norm: str = "self_attn.k_norm"
    output: str = "self_attn.o_proj"
    post_attention_norm: str = "post_attention_layernorm"
    mlp_norm: str = "post_attention_layernorm"
    gate_up: tuple[str, ...] = ("mlp.gate_proj", "mlp.up_proj")
    down: str = "mlp.down_proj"
    post_mlp_norm: str = "post_feedforward_layernorm"
    router: str = "mlp.gate"
    expert: str = "mlp.experts.{expert}."
    expert_gate_up: tuple[str, ...] = ("gate_proj", "up_proj")
    expert_down: str = "down_proj"


@dataclass(frozen=True, slots=True)
class Family:
    """One family.

    Attributes:
        read_config: turns `config.json` into a `ModelConfig`; raises `CheckpointError`.
        names: of its tensors.
        layout: brings other layouts of its files to these names.
    """

    read_config: Callable[[JsonFields], ModelConfig]
    names: TensorNames = TensorNames()
    layout: StoredLayout = with_prefix


def with_defaults(fields: JsonFields, defaults: Mapping[str, Any]) -> JsonFields:
    """Return the same object with the values that transformers' config class gives to absent keys.

    A key that is there with null keeps it: a window or a soft cap of null means none.
    """
    absent = {key: value for key, value in defaults.items() if key not in fields.nulls}
    return JsonFields({**absent, **fields.values}, fields.where)


def decoder_config(
    fields: JsonFields, *, activation_key: str = "hidden_act", **differences: Any
) -> ModelConfig:
    """Read what all families share.

    Absent keys take the defaults of transformers' `LlamaConfig`, because `save_pretrained` may leave out
    what equals a default; other families put theirs in with `with_defaults`.

    Args:
        fields: `config.json`.
        activation_key: where the activation stands.
        differences: fields of `ModelConfig` in which a family is not like Llama.

    Raises:
        CheckpointError: a value is unusable or not implemented; the message names file and key.
    """
    refuse_what_is_not_computed(fields, differences)
    activation = fields.values.get(activation_key, "silu")
    if activation not in ACTIVATIONS:
        known = ", ".join(ACTIVATIONS)
        raise CheckpointError(
            f"{fields.where}: {activation_key} {activation!r} is not supported; known: {known}"
        )
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
    experts = differences.get("experts")
    if experts is not None and experts.experts_per_token > experts.num_experts:
        raise fields.bad("num_experts_per_tok", f"at most the number of experts, {experts.num_experts}")
    max_position = fields.integer("max_position_embeddings", 2048)
    if "ropes" not in differences:
        rope = parse_rope(fields, max_position, head_dim)
        differences["ropes"] = (rope,)
        max_position = stretched_context(fields, rope, max_position)
    differences.setdefault("layers", (LayerConfig(),) * fields.integer("num_hidden_layers"))
    return ModelConfig(
        vocab_size=fields.integer("vocab_size"),
        hidden_size=hidden_size,
        intermediate_size=fields.integer("intermediate_size"),
        num_heads=num_heads,
        num_kv_heads=num_kv_heads,
        head_dim=head_dim,
        rms_norm_eps=fields.number("rms_norm_eps", 1e-6),
        max_position_embeddings=max_position,
        tie_word_embeddings=fields.flag("tie_word_embeddings", False),
        dtype=str(fields.values.get("dtype", fields.values.get("torch_dtype", ""))),
        bos_token_id=next(iter(fields.token_ids("bos_token_id")), None),
        eos_token_ids=fields.token_ids("eos_token_id"),
        activation=ACTIVATIONS[activation],
        **differences,
    )
