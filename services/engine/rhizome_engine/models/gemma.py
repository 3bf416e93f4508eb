"""The first Gemma: Llama with gains stored minus 1, scaled embeddings and wide heads."""

from __future__ import annotations

from rhizome_engine.checkpoint.json_fields import JsonFields
from rhizome_engine.checkpoint.model_config import ModelConfig
from rhizome_engine.models.family import Family, decoder_config, with_defaults

_DEFAULTS = {
    "head_dim": 256,
    "max_position_embeddings": 8192,
    "num_key_value_heads": 16,
    "tie_word_embeddings": True,
}


def _read_config(given: JsonFields) -> ModelConfig:
    fields = with_defaults(given, _DEFAULTS)
    # Published files say "gelu" and mean the approximation that the model was trained with.
    if fields.values.get("hidden_act", "gelu") == "gelu":
        fields.values["hidden_act"] = "gelu_pytorch_tanh"
    attention_bias = fields.flag("attention_bias", False)
    return decoder_config(
        fields,
        qkv_bias=attention_bias,
        output_bias=attention_bias,
        norm_plus_one=True,
        embedding_multiplier=fields.integer("hidden_size") ** 0.5,
    )


FAMILY = Family(_read_config)
