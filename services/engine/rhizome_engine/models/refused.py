"""Settings of `config.json` that change what a model computes, and which only some families or none compute.

A checkpoint that asks for one where it is not computed is refused by name: ignoring it would serve another
model than the one that was trained.
"""

from __future__ import annotations

import json
from collections.abc import Collection
from typing import Any

from rhizome_engine.checkpoint.errors import CheckpointError
from rhizome_engine.checkpoint.json_fields import JsonFields

OFF: tuple[Any, ...] = (False, 0, "", [], {})
ONE = (1,)
ALL_ONE: tuple[Any, ...] = ([1], [])
NEUTRAL: dict[str, tuple[Any, ...]] = {
    # attention
    "add_full_attention_sink_bias": OFF,
    "add_swa_attention_sink_bias": OFF,
    "attention_bias": OFF,
    "attention_chunk_size": OFF,
    "attention_multiplier": (),
    "attention_out_bias": OFF,
    "attention_sinks": OFF,
    "attn_logit_softcapping": OFF,
    "attn_output_gate": OFF,
    "attn_temperature_tuning": OFF,
    "clip_qkv": OFF,
    "gated_attention": OFF,
    "interleaved_sliding_window": OFF,
    "kv_lora_rank": OFF,
    "layer_types": (["full_attention"],),
    "num_kv_shared_layers": OFF,
    "num_sink_tokens": OFF,
    "q_lora_rank": OFF,
    "qk_layernorm": OFF,
    "query_pre_attn_scalar": (),
    "sliding_window": OFF,
    "use_attention_sink": OFF,
    "use_attention_sinks": OFF,
    "use_bidirectional_attention": OFF,
    "use_gated_attention": OFF,
    "use_qk_norm": OFF,
    "v_head_dim": OFF,
    # positions
    "alibi": OFF,
    "no_rope_layers": ALL_ONE,
    "position_embedding_type": ("rope", "rotary"),
    "rope_interleave": OFF,
    "rope_interleaved": OFF,
    "rotary_interleaved": OFF,
    "use_alibi": OFF,
    "use_mrope": OFF,
    # residual stream
    "add_cross_attention": OFF,
    "apply_residual_connection_post_layernorm": OFF,
    "dim_model_base": OFF,
    "embedding_multiplier": ONE,
    "is_encoder_decoder": OFF,
    "parallel_attn": OFF,
    "parallel_residual": OFF,
    "residual_multiplier": ONE,
    "scale_depth": ONE,
    "scale_emb": ONE,
    "scale_embedding": OFF,
    "use_mup": OFF,
    "use_parallel_residual": OFF,
    # feed-forward
    "block_configs": OFF,
    "layers_block_type": OFF,
    "mlp_bias": OFF,
    "moe_num_shared_experts": OFF,
    "n_routed_experts": OFF,
    "n_shared_experts": OFF,
    "num_experts": OFF,
    "num_local_experts": OFF,
    "num_shared_experts": OFF,
    "per_layer_config": OFF,
    "shared_expert_intermediate_size": OFF,
    "shared_intermediate_size": OFF,
    "use_expert_bias": OFF,
    # output
    "final_logit_softcapping": OFF,
    "lm_head_bias": OFF,
    "logit_scale": ONE,
    "logits_scaling": ONE,
}
"""Key → the values under which it changes nothing; of a list, the distinct ones count."""

COMPUTED_THROUGH = {
    "attention_bias": "qkv_bias",
    "attention_multiplier": "attention_scale",
    "attention_out_bias": "output_bias",
    "attn_logit_softcapping": "attention_softcap",
    "embedding_multiplier": "embedding_multiplier",
    "final_logit_softcapping": "logits_softcap",
    "layer_types": "layers",
    "logits_scaling": "logits_multiplier",
    "mlp_bias": "mlp_bias",
    "no_rope_layers": "layers",
    "num_experts": "experts",
    "num_local_experts": "experts",
    "query_pre_attn_scalar": "attention_scale",
    "residual_multiplier": "residual_multiplier",
    "sliding_window": "layers",
    "use_qk_norm": "qk_norm",
}
"""Key → the field of `ModelConfig` that takes care of it where a family sets that field."""


def refuse_what_is_not_computed(fields: JsonFields, computed: Collection[str]) -> None:
    """Check that a config asks for nothing which its family leaves out.

    Args:
        fields: `config.json`.
        computed: fields of `ModelConfig` that the family sets.

    Raises:
        CheckpointError: it does; the message names the key and the values that are served.
    """
    for key, value in fields.values.items():
        # Maximal update parametrisation multiplies at many places, by many names.
        neutral = OFF + ONE if key.startswith("mup_") else NEUTRAL.get(key)
        if neutral is None or COMPUTED_THROUGH.get(key) in computed:
            continue
        if _distinct(value) not in neutral:
            served = ", ".join([*map(json.dumps, neutral), "absent"])
            raise CheckpointError(
                f"{fields.where}: {key} {json.dumps(value)} is not supported for this architecture; "
                f"known: {served}"
            )


def _distinct(value: Any) -> Any:
    """Return a list without repetitions, anything else as it is."""
    if not isinstance(value, list):
        return value
    return [item for index, item in enumerate(value) if item not in value[:index]]
