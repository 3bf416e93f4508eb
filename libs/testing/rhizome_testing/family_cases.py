"""One small configuration per family and option, to be made with transformers' own classes.

Prompts of `PROMPT_TOKENS` are longer than every window, and longer than the context before stretching where a
rotary scaling distinguishes the two.
"""

from __future__ import annotations

import importlib
import warnings
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

PROMPT_TOKENS = 100
SIZES = {
    "vocab_size": 320,
    "hidden_size": 64,
    "intermediate_size": 112,
    "num_hidden_layers": 4,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 512,
    "bos_token_id": 256,
    "eos_token_id": 257,
    "pad_token_id": 258,
}
_VISION = {
    "hidden_size": 16,
    "intermediate_size": 16,
    "num_hidden_layers": 1,
    "num_attention_heads": 2,
    "image_size": 28,
    "patch_size": 14,
}


@dataclass(frozen=True, slots=True)
class FamilyCase:
    """A configuration.

    Attributes:
        architecture: class in transformers.
        options: for its config class, beside or instead of `SIZES`.
        seed: of the weights; chosen so that greedy texts are varied and have no near ties.
    """

    architecture: str
    options: Mapping[str, Any]
    seed: int = 0

    def make(self) -> Any:
        """Make the transformers model; its weights are what transformers initialises."""
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            transformers = importlib.import_module("transformers")
            transformers.logging.set_verbosity_error()
            transformers.logging.disable_progress_bar()
            model_class = getattr(transformers, self.architecture)
            config_class = model_class.config_class
            if self.architecture == "Gemma3ForConditionalGeneration":
                text = {**SIZES, **self.options}
                config = config_class(text_config=text, vision_config=_VISION, mm_tokens_per_image=4)
            else:
                config = config_class(**{**SIZES, **self.options})
            config._attn_implementation = "eager"
            return model_class(config)


def _between(first: float, last: float, count: int) -> list[float]:
    return [first + (last - first) * index / count for index in range(count)]


def _rope(kind: str, **options: Any) -> dict[str, Any]:
    return {"rope_parameters": {"rope_type": kind, "rope_theta": 10000.0, **options}}


_LONGROPE = {
    "short_factor": _between(1, 2, 6),
    "long_factor": _between(1, 8, 6),
    "partial_rotary_factor": 0.75,
}
_GEMMA3 = {
    "head_dim": 24,
    "query_pre_attn_scalar": 20,
    "sliding_window": 8,
    "layer_types": ["sliding_attention", "full_attention"] * 2,
}
_GEMMA3_ROPES = {
    "rope_parameters": {
        "full_attention": {"rope_type": "linear", "factor": 8.0, "rope_theta": 1e6},
        "sliding_attention": {"rope_type": "default", "rope_theta": 1e4},
    }
}
_EXPERTS = {"num_experts": 6, "num_experts_per_tok": 2, "moe_intermediate_size": 24, "head_dim": 24}

CASES = {
    "llama, grouped-query": FamilyCase("LlamaForCausalLM", {}, seed=3),
    "llama, multi-query, biases, tied": FamilyCase(
        "LlamaForCausalLM",
        {"num_key_value_heads": 1, "attention_bias": True, "mlp_bias": True, "tie_word_embeddings": True},
    ),
    "llama, head_dim 24, gelu": FamilyCase(
        "LlamaForCausalLM",
        {"head_dim": 24, "hidden_act": "gelu_pytorch_tanh", "num_key_value_heads": 4},
        seed=2,
    ),
    "mistral, window": FamilyCase("MistralForCausalLM", {"sliding_window": 8, "head_dim": 24}, seed=2),
    "mistral, no window": FamilyCase("MistralForCausalLM", {"sliding_window": None}, seed=3),
    "ministral": FamilyCase(
        "MinistralForCausalLM",
        {"sliding_window": 9, "head_dim": 16, "layer_types": ["sliding_attention", "full_attention"] * 2},
    ),
    "qwen2, no window": FamilyCase("Qwen2ForCausalLM", {"sliding_window": 8}),
    "qwen2, window in later layers, tied": FamilyCase(
        "Qwen2ForCausalLM",
        {
            "use_sliding_window": True,
            "sliding_window": 9,
            "max_window_layers": 2,
            "tie_word_embeddings": True,
        },
        seed=5,
    ),
    "qwen2, layer_types": FamilyCase(
        "Qwen2ForCausalLM",
        {
            "use_sliding_window": True,
            "sliding_window": 20,
            "layer_types": ["full_attention", "sliding_attention"] * 2,
        },
        seed=1,
    ),
    "qwen3, tied": FamilyCase("Qwen3ForCausalLM", {"head_dim": 24, "tie_word_embeddings": True}),
    "qwen3, biases, window": FamilyCase(
        "Qwen3ForCausalLM",
        {
            "head_dim": 32,
            "attention_bias": True,
            "use_sliding_window": True,
            "sliding_window": 12,
            "max_window_layers": 1,
        },
    ),
    "gemma, biases, untied": FamilyCase(
        "GemmaForCausalLM",
        {"head_dim": 24, "attention_bias": True, "tie_word_embeddings": False},
        seed=1,
    ),
    "gemma2, soft caps, untied": FamilyCase(
        "Gemma2ForCausalLM",
        {
            "head_dim": 24,
            "sliding_window": 8,
            "query_pre_attn_scalar": 20,
            "attn_logit_softcapping": 3.0,
            "final_logit_softcapping": 4.0,
            "tie_word_embeddings": False,
        },
    ),
    "gemma2, no soft caps": FamilyCase(
        "Gemma2ForCausalLM",
        {
            "head_dim": 16,
            "sliding_window": 30,
            "attn_logit_softcapping": None,
            "final_logit_softcapping": None,
        },
        seed=4,
    ),
    "gemma3, scaled global rope": FamilyCase("Gemma3ForCausalLM", {**_GEMMA3, **_GEMMA3_ROPES}, seed=5),
    "gemma3, default pattern, soft cap": FamilyCase(
        "Gemma3ForCausalLM",
        {
            "head_dim": 24,
            "sliding_window": 8,
            "num_hidden_layers": 7,
            "final_logit_softcapping": 4.0,
            "attention_bias": True,
        },
        seed=7,
    ),
    "gemma3, the text part of a model that sees": FamilyCase(
        "Gemma3ForConditionalGeneration", {**_GEMMA3, **_GEMMA3_ROPES}, seed=5
    ),
    "phi3, window": FamilyCase("Phi3ForCausalLM", {"sliding_window": 7}),
    "phi3, long context": FamilyCase(
        "Phi3ForCausalLM",
        {
            "num_attention_heads": 4,
            "original_max_position_embeddings": 32,
            **_rope("longrope", **_LONGROPE),
            "tie_word_embeddings": True,
        },
    ),
    "phi3, short context": FamilyCase(
        "Phi3ForCausalLM",
        {"original_max_position_embeddings": 512, **_rope("longrope", attention_factor=1.2, **_LONGROPE)},
        seed=2,
    ),
    "granite": FamilyCase(
        "GraniteForCausalLM",
        {
            "embedding_multiplier": 6.0,
            "residual_multiplier": 0.4,
            "logits_scaling": 0.5,
            "attention_multiplier": 0.1,
        },
        seed=6,
    ),
    "granite, biases, tied": FamilyCase(
        "GraniteForCausalLM",
        {"attention_bias": True, "mlp_bias": True, "tie_word_embeddings": True, "logits_scaling": 2.0},
        seed=5,
    ),
    "smollm3": FamilyCase("SmolLM3ForCausalLM", {}, seed=4),
    "smollm3, own pattern, biases, untied": FamilyCase(
        "SmolLM3ForCausalLM",
        {
            "no_rope_layers": [1, 0, 0, 1],
            "attention_bias": True,
            "mlp_bias": True,
            "tie_word_embeddings": False,
        },
    ),
    "smollm3, window": FamilyCase(
        "SmolLM3ForCausalLM", {"no_rope_layer_interval": 2, "use_sliding_window": True, "sliding_window": 8}
    ),
    "qwen3 moe": FamilyCase("Qwen3MoeForCausalLM", {**_EXPERTS, "norm_topk_prob": True}, seed=2),
    "qwen3 moe, some layers dense, not normalised": FamilyCase(
        "Qwen3MoeForCausalLM",
        {**_EXPERTS, "mlp_only_layers": [1], "attention_bias": True},
        seed=1,
    ),
    "qwen3 moe, every second layer, window": FamilyCase(
        "Qwen3MoeForCausalLM",
        {**_EXPERTS, "decoder_sparse_step": 2, "use_sliding_window": True, "sliding_window": 10},
        seed=2,
    ),
    "mixtral": FamilyCase("MixtralForCausalLM", {"num_local_experts": 5, "sliding_window": None}),
    "mixtral, window": FamilyCase(
        "MixtralForCausalLM", {"num_local_experts": 3, "sliding_window": 11}, seed=2
    ),
    "rope linear": FamilyCase("LlamaForCausalLM", _rope("linear", factor=4.0)),
    "rope dynamic": FamilyCase(
        "LlamaForCausalLM",
        {"max_position_embeddings": PROMPT_TOKENS + 10, **_rope("dynamic", factor=3.0)},
        seed=3,
    ),
    "rope llama3": FamilyCase(
        "LlamaForCausalLM",
        _rope(
            "llama3",
            factor=8.0,
            low_freq_factor=1.0,
            high_freq_factor=4.0,
            original_max_position_embeddings=64,
        ),
    ),
    "rope yarn": FamilyCase(
        "Qwen2ForCausalLM",
        _rope("yarn", factor=4.0, original_max_position_embeddings=64),
        seed=1,
    ),
    "rope yarn, all settings": FamilyCase(
        "LlamaForCausalLM",
        _rope(
            "yarn",
            factor=16.0,
            original_max_position_embeddings=32,
            beta_fast=16.0,
            beta_slow=2.0,
            mscale=0.7,
            mscale_all_dim=1.1,
            truncate=False,
        ),
        seed=2,
    ),
    "rope longrope": FamilyCase(
        "LlamaForCausalLM",
        _rope(
            "longrope",
            factor=8.0,
            original_max_position_embeddings=64,
            short_factor=_between(1, 2, 8),
            long_factor=_between(1, 8, 8),
        ),
    ),
}
"""What is special → how to make it."""
