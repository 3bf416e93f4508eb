"""Gemma 3, text only: QK-norm, and its own rotary embedding for the layers with a window."""

from __future__ import annotations

from rhizome_engine.checkpoint.json_fields import JsonFields
from rhizome_engine.checkpoint.model_config import LayerConfig, ModelConfig
from rhizome_engine.checkpoint.rope_config import RopeConfig, read_rope
from rhizome_engine.models.family import Family, with_defaults
from rhizome_engine.models.gemma2 import GEMMA_DEFAULTS, GEMMA_NAMES, gemma_config
from rhizome_engine.models.layer_types import layer_windows
from rhizome_engine.models.stored_layout import text_part

_DEFAULTS = {**GEMMA_DEFAULTS, "max_position_embeddings": 131072, "vocab_size": 262208}
GLOBAL, LOCAL = 0, 1


def _read_config(given: JsonFields) -> ModelConfig:
    text = given.section("text_config")
    if text is not None:
        # What the whole model says counts where its text part is silent, as for the ids that end a sequence.
        text = JsonFields({**given.values, **text.values, **dict.fromkeys(text.nulls)}, text.where)
    fields = with_defaults(text or given, _DEFAULTS)
    every = fields.integer("sliding_window_pattern", 6)
    num_layers = fields.integer("num_hidden_layers")
    windows = layer_windows(fields, [(layer + 1) % every != 0 for layer in range(num_layers)])
    return gemma_config(
        fields,
        qk_norm=True,
        layers=tuple(LayerConfig(window, rope=LOCAL if window else GLOBAL) for window in windows),
        ropes=_read_ropes(fields),
    )


def _read_ropes(fields: JsonFields) -> tuple[RopeConfig, ...]:
    """Read the global and the local rotary embedding.

    transformers 4 has `rope_theta` and `rope_scaling` for the global one and `rope_local_base_freq` for the
    other; transformers 5 has `rope_parameters` with one section per type of layer.
    """
    position, head_dim = fields.integer("max_position_embeddings"), fields.integer("head_dim")
    sections = fields.section("rope_parameters") or JsonFields({}, fields.where)
    nothing = JsonFields({}, fields.where)
    thetas = (fields.number("rope_theta", 1e6), fields.number("rope_local_base_freq", 1e4))
    kinds = (
        sections.section("full_attention") or fields.section("rope_scaling") or nothing,
        sections.section("sliding_attention") or nothing,
    )
    return tuple(
        read_rope(with_defaults(section, {"rope_theta": theta}), fields, position, head_dim)
        for section, theta in zip(kinds, thetas, strict=True)
    )


FAMILY = Family(_read_config, GEMMA_NAMES, text_part)
