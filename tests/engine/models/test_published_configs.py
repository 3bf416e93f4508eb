"""Settings of published checkpoints are read for what they mean; sizes are theirs, token ids left out."""

from __future__ import annotations

import math
from collections import Counter

import pytest

from rhizome_engine.checkpoint.json_fields import JsonFields
from rhizome_engine.models.registry import parse_model_config

LLAMA_3_2_1B = {
    "architectures": ["LlamaForCausalLM"],
    "attention_bias": False,
    "head_dim": 64,
    "hidden_act": "silu",
    "hidden_size": 2048,
    "intermediate_size": 8192,
    "max_position_embeddings": 131072,
    "mlp_bias": False,
    "num_attention_heads": 32,
    "num_hidden_layers": 16,
    "num_key_value_heads": 8,
    "pretraining_tp": 1,
    "rms_norm_eps": 1e-05,
    "rope_scaling": {
        "factor": 32.0,
        "high_freq_factor": 4.0,
        "low_freq_factor": 1.0,
        "original_max_position_embeddings": 8192,
        "rope_type": "llama3",
    },
    "rope_theta": 500000.0,
    "tie_word_embeddings": True,
    "torch_dtype": "bfloat16",
    "vocab_size": 128256,
}
MISTRAL_7B = {
    "architectures": ["MistralForCausalLM"],
    "hidden_act": "silu",
    "hidden_size": 4096,
    "intermediate_size": 14336,
    "max_position_embeddings": 32768,
    "num_attention_heads": 32,
    "num_hidden_layers": 32,
    "num_key_value_heads": 8,
    "rms_norm_eps": 1e-05,
    "rope_theta": 1000000.0,
    "sliding_window": None,
    "tie_word_embeddings": False,
    "vocab_size": 32768,
}
MIXTRAL_8X7B = {
    **MISTRAL_7B,
    "architectures": ["MixtralForCausalLM"],
    "num_experts_per_tok": 2,
    "num_local_experts": 8,
    "output_router_logits": False,
    "router_aux_loss_coef": 0.02,
}
QWEN_2_5_7B = {
    "architectures": ["Qwen2ForCausalLM"],
    "hidden_act": "silu",
    "hidden_size": 3584,
    "intermediate_size": 18944,
    "max_position_embeddings": 32768,
    "max_window_layers": 28,
    "num_attention_heads": 28,
    "num_hidden_layers": 28,
    "num_key_value_heads": 4,
    "rms_norm_eps": 1e-06,
    "rope_theta": 1000000.0,
    "sliding_window": 131072,
    "tie_word_embeddings": False,
    "use_mrope": False,
    "use_sliding_window": False,
    "vocab_size": 152064,
}
QWEN_3_30B_A3B = {
    "architectures": ["Qwen3MoeForCausalLM"],
    "attention_bias": False,
    "decoder_sparse_step": 1,
    "head_dim": 128,
    "hidden_act": "silu",
    "hidden_size": 2048,
    "intermediate_size": 6144,
    "max_position_embeddings": 40960,
    "max_window_layers": 48,
    "mlp_only_layers": [],
    "moe_intermediate_size": 768,
    "norm_topk_prob": True,
    "num_attention_heads": 32,
    "num_experts": 128,
    "num_experts_per_tok": 8,
    "num_hidden_layers": 48,
    "num_key_value_heads": 4,
    "rms_norm_eps": 1e-06,
    "rope_scaling": None,
    "rope_theta": 1000000.0,
    "sliding_window": None,
    "tie_word_embeddings": False,
    "use_sliding_window": False,
    "vocab_size": 151936,
}
GEMMA_2_2B = {
    "architectures": ["Gemma2ForCausalLM"],
    "attention_bias": False,
    "attn_logit_softcapping": 50.0,
    "cache_implementation": "hybrid",
    "final_logit_softcapping": 30.0,
    "head_dim": 256,
    "hidden_act": "gelu_pytorch_tanh",
    "hidden_activation": "gelu_pytorch_tanh",
    "hidden_size": 2304,
    "intermediate_size": 9216,
    "max_position_embeddings": 8192,
    "num_attention_heads": 8,
    "num_hidden_layers": 26,
    "num_key_value_heads": 4,
    "query_pre_attn_scalar": 256,
    "rms_norm_eps": 1e-06,
    "rope_theta": 10000.0,
    "sliding_window": 4096,
    "vocab_size": 256000,
}
GEMMA_3_4B = {
    "architectures": ["Gemma3ForConditionalGeneration"],
    "boi_token_index": 255999,
    "eoi_token_index": 256000,
    "eos_token_id": [1, 106],
    "image_token_index": 262144,
    "mm_tokens_per_image": 256,
    "model_type": "gemma3",
    "text_config": {
        "hidden_size": 2560,
        "intermediate_size": 10240,
        "model_type": "gemma3_text",
        "num_hidden_layers": 34,
        "rope_scaling": {"factor": 8.0, "rope_type": "linear"},
        "sliding_window": 1024,
    },
    "torch_dtype": "bfloat16",
    "vision_config": {"hidden_size": 1152, "num_attention_heads": 16, "num_hidden_layers": 27},
}
GEMMA_3_1B = {
    "architectures": ["Gemma3ForCausalLM"],
    "attention_bias": False,
    "attn_logit_softcapping": None,
    "final_logit_softcapping": None,
    "head_dim": 256,
    "hidden_activation": "gelu_pytorch_tanh",
    "hidden_size": 1152,
    "intermediate_size": 6912,
    "max_position_embeddings": 32768,
    "num_attention_heads": 4,
    "num_hidden_layers": 26,
    "num_key_value_heads": 1,
    "query_pre_attn_scalar": 256,
    "rms_norm_eps": 1e-06,
    "rope_local_base_freq": 10000,
    "rope_scaling": None,
    "rope_theta": 1000000,
    "sliding_window": 512,
    "sliding_window_pattern": 6,
    "vocab_size": 262144,
}
PHI_4_MINI = {
    "architectures": ["Phi3ForCausalLM"],
    "attention_bias": False,
    "full_attn_mod": 1,
    "hidden_act": "silu",
    "hidden_size": 3072,
    "intermediate_size": 8192,
    "interpolate_factor": 1,
    "lm_head_bias": False,
    "max_position_embeddings": 131072,
    "mlp_bias": False,
    "num_attention_heads": 24,
    "num_hidden_layers": 32,
    "num_key_value_heads": 8,
    "original_max_position_embeddings": 4096,
    "partial_rotary_factor": 0.75,
    "rms_norm_eps": 1e-05,
    "rope_scaling": {"long_factor": [2.0] * 48, "short_factor": [1.0] * 48, "type": "longrope"},
    "rope_theta": 10000.0,
    "sliding_window": 262144,
    "tie_word_embeddings": True,
    "vocab_size": 200064,
}
GRANITE_3_3_2B = {
    "architectures": ["GraniteForCausalLM"],
    "attention_bias": False,
    "attention_multiplier": 0.015625,
    "embedding_multiplier": 12.0,
    "hidden_act": "silu",
    "hidden_size": 2048,
    "intermediate_size": 8192,
    "logits_scaling": 8.0,
    "max_position_embeddings": 131072,
    "mlp_bias": False,
    "num_attention_heads": 32,
    "num_hidden_layers": 40,
    "num_key_value_heads": 8,
    "residual_multiplier": 0.22,
    "rms_norm_eps": 1e-05,
    "rope_scaling": None,
    "rope_theta": 10000000.0,
    "tie_word_embeddings": True,
    "vocab_size": 49159,
}
SMOLLM_3_3B = {
    "architectures": ["SmolLM3ForCausalLM"],
    "attention_bias": False,
    "hidden_act": "silu",
    "hidden_size": 2048,
    "intermediate_size": 11008,
    "layer_types": ["full_attention"] * 36,
    "max_position_embeddings": 65536,
    "max_window_layers": 28,
    "mlp_bias": False,
    "no_rope_layer_interval": 4,
    "no_rope_layers": [1, 1, 1, 0] * 9,
    "num_attention_heads": 16,
    "num_hidden_layers": 36,
    "num_key_value_heads": 4,
    "pretraining_tp": 2,
    "rms_norm_eps": 1e-06,
    "rope_scaling": None,
    "rope_theta": 5000000.0,
    "sliding_window": None,
    "use_sliding_window": False,
    "vocab_size": 128256,
}


def parse(values, **changes):
    return parse_model_config(JsonFields({**values, **changes}, "config.json"))


def windows(config):
    return Counter(layer.window for layer in config.layers)


def test_llama_3_2():
    config = parse(LLAMA_3_2_1B)
    assert (config.head_dim, config.tie_word_embeddings, config.dtype) == (64, True, "bfloat16")
    assert (config.ropes[0].kind, config.ropes[0].factor) == ("llama3", 32.0)


def test_mistral_and_mixtral():
    assert windows(parse(MISTRAL_7B)) == {0: 32}
    assert windows(parse(MISTRAL_7B, sliding_window=4096)) == {4096: 32}
    config = parse(MIXTRAL_8X7B)
    assert config.experts is not None and all(layer.experts for layer in config.layers)
    assert (config.experts.num_experts, config.experts.experts_per_token) == (8, 2)
    assert config.experts.normalise and config.experts.intermediate_size == 14336


def test_qwen_2_5():
    config = parse(QWEN_2_5_7B)
    assert config.qkv_bias and not config.output_bias and windows(config) == {0: 28}
    assert config.max_position_embeddings == 32768
    scaling = {"factor": 4.0, "original_max_position_embeddings": 32768, "type": "yarn"}
    stretched = parse(QWEN_2_5_7B, rope_scaling=scaling)
    assert stretched.max_position_embeddings == 131072
    assert stretched.ropes[0].attention_factor == pytest.approx(0.1 * math.log(4) + 1)


def test_qwen_3_moe():
    config = parse(QWEN_3_30B_A3B)
    assert config.experts is not None and all(layer.experts for layer in config.layers)
    assert (config.experts.num_experts, config.experts.intermediate_size) == (128, 768)
    assert config.qk_norm and config.num_heads * config.head_dim == 2 * config.hidden_size


def test_gemma_2():
    config = parse(GEMMA_2_2B)
    assert windows(config) == {4096: 13, 0: 13} and config.layers[0].window == 4096
    assert (config.attention_softcap, config.logits_softcap, config.attention_scale) == (50.0, 30.0, 1 / 16)
    assert config.tie_word_embeddings and config.embedding_multiplier == 48.0


def test_gemma_3_with_and_without_eyes():
    config = parse(GEMMA_3_4B)
    assert windows(config) == {1024: 29, 0: 5} and config.layers[5].window == 0
    assert (config.num_heads, config.num_kv_heads, config.head_dim) == (8, 4, 256)
    assert (config.vocab_size, config.max_position_embeddings) == (262208, 131072)
    assert [(rope.theta, rope.kind, rope.factor) for rope in config.ropes] == [
        (1e6, "linear", 8.0),
        (1e4, "default", 1.0),
    ]
    assert [layer.rope for layer in config.layers[:6]] == [1, 1, 1, 1, 1, 0]
    assert (config.eos_token_ids, config.dtype) == ((1, 106), "bfloat16")
    small = parse(GEMMA_3_1B)
    assert windows(small) == {512: 22, 0: 4}
    assert [rope.kind for rope in small.ropes] == ["default", "default"]
    assert small.attention_softcap == small.logits_softcap == 0


def test_phi_4_mini():
    config = parse(PHI_4_MINI)
    (rope,) = config.ropes
    assert rope.rotary_dim(config.head_dim) == 96 and len(rope.long_factors) == 48
    assert rope.attention_factor == pytest.approx(math.sqrt(1 + math.log(32) / math.log(4096)))
    assert config.max_position_embeddings == 131072 and windows(config) == {262144: 32}


def test_granite_3_3():
    config = parse(GRANITE_3_3_2B)
    assert (config.embedding_multiplier, config.residual_multiplier) == (12.0, 0.22)
    assert (config.logits_multiplier, config.attention_scale) == (0.125, 1 / 64)


def test_smollm_3():
    config = parse(SMOLLM_3_3B)
    assert Counter(layer.rope for layer in config.layers) == {0: 27, None: 9}
    assert config.layers[3].rope is None and config.tie_word_embeddings
    assert windows(config) == {0: 36}
