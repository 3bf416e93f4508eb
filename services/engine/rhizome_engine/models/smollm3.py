"""SmolLM 3: Llama with layers that do not encode positions."""

from __future__ import annotations

from rhizome_engine.checkpoint.json_fields import JsonFields
from rhizome_engine.checkpoint.model_config import LayerConfig, ModelConfig
from rhizome_engine.models.family import Family, decoder_config, with_defaults
from rhizome_engine.models.layer_types import layer_numbers, layer_windows

_DEFAULTS = {
    "max_position_embeddings": 32768,
    "num_key_value_heads": 4,
    "rope_theta": 2e6,
    "tie_word_embeddings": True,
}


def _read_config(given: JsonFields) -> ModelConfig:
    fields = with_defaults(given, _DEFAULTS)
    num_layers = fields.integer("num_hidden_layers")
    every = fields.integer("no_rope_layer_interval", 4)
    # In spite of its name, the list holds a 1 for layers with rotary embeddings.
    has_rope = layer_numbers(fields, "no_rope_layers") or [
        int((layer + 1) % every != 0) for layer in range(num_layers)
    ]
    if len(has_rope) < num_layers:
        raise fields.bad("no_rope_layers", f"a list of {num_layers} integers, one per layer")
    enabled = fields.flag("use_sliding_window", False) and "sliding_window" in fields
    windows = layer_windows(fields, [not rope for rope in has_rope[:num_layers]], enabled=enabled)
    attention_bias = fields.flag("attention_bias", False)
    return decoder_config(
        fields,
        qkv_bias=attention_bias,
        output_bias=attention_bias,
        mlp_bias=fields.flag("mlp_bias", False),
        layers=tuple(
            LayerConfig(window, rope=0 if rope else None)
            for window, rope in zip(windows, has_rope, strict=False)
        ),
    )


FAMILY = Family(_read_config)
