"""Which family a checkpoint belongs to.

The table holds module paths rather than modules: a family's file is imported only by those who use it.
"""

from __future__ import annotations

from dataclasses import replace
from importlib import import_module

from rhizome_engine.checkpoint.errors import CheckpointError
from rhizome_engine.checkpoint.json_fields import JsonFields
from rhizome_engine.checkpoint.model_config import ModelConfig
from rhizome_engine.models.family import Family

ARCHITECTURES = {
    "GemmaForCausalLM": "rhizome_engine.models.gemma",
    "Gemma2ForCausalLM": "rhizome_engine.models.gemma2",
    "Gemma3ForCausalLM": "rhizome_engine.models.gemma3",
    "Gemma3ForConditionalGeneration": "rhizome_engine.models.gemma3",
    "GraniteForCausalLM": "rhizome_engine.models.granite",
    "LlamaForCausalLM": "rhizome_engine.models.llama",
    "MinistralForCausalLM": "rhizome_engine.models.ministral",
    "MistralForCausalLM": "rhizome_engine.models.mistral",
    "MixtralForCausalLM": "rhizome_engine.models.mixtral",
    "Phi3ForCausalLM": "rhizome_engine.models.phi3",
    "Qwen2ForCausalLM": "rhizome_engine.models.qwen2",
    "Qwen3ForCausalLM": "rhizome_engine.models.qwen3",
    "Qwen3MoeForCausalLM": "rhizome_engine.models.qwen3_moe",
    "SmolLM3ForCausalLM": "rhizome_engine.models.smollm3",
}
"""Class name in `config.json` → module that holds its `FAMILY`."""


def family_of(architecture: str) -> Family:
    """Return the family of a known architecture.

    Raises:
        KeyError: unknown; `parse_model_config` refuses it earlier and in words.
    """
    family: Family = import_module(ARCHITECTURES[architecture]).FAMILY
    return family


def parse_model_config(fields: JsonFields) -> ModelConfig:
    """Turn `config.json` into a `ModelConfig`.

    Raises:
        CheckpointError: the architecture is unknown, or a value is unusable or not implemented.
    """
    names = fields.values.get("architectures", [])
    known = [name for name in names if name in ARCHITECTURES] if isinstance(names, list) else []
    if not known:
        raise CheckpointError(
            f"{fields.where}: no supported architecture in architectures {names!r} "
            f"(model_type {fields.values.get('model_type')!r}); supported: {', '.join(ARCHITECTURES)}"
        )
    return replace(family_of(known[0]).read_config(fields), architecture=known[0])
