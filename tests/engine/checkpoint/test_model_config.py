"""`config.json` in all its spellings, and what is refused."""

from __future__ import annotations

import json

import pytest

from rhizome_engine.checkpoint.errors import CheckpointError
from rhizome_engine.checkpoint.loader import load_checkpoint
from rhizome_engine.checkpoint.model_config import LayerConfig
from rhizome_engine.checkpoint.rope_config import RopeConfig
from rhizome_testing.checkpoints import LlamaShape, write_llama_checkpoint


def load(tmp_path, remove=(), **changes):
    config = {**LlamaShape().to_config(), **changes}
    for key in remove:
        del config[key]
    (tmp_path / "config.json").write_text(json.dumps(config))
    return load_checkpoint(tmp_path)


def test_a_whole_checkpoint_is_described(tmp_path):
    write_llama_checkpoint(
        tmp_path,
        generation_config={
            "eos_token_id": [260, 261],
            "temperature": 0.6,
            "top_p": 0.9,
            "top_k": 0,
            "do_sample": True,
        },
    )
    checkpoint = load_checkpoint(tmp_path)
    config = checkpoint.config
    assert (config.num_heads, config.num_kv_heads, config.head_dim) == (4, 2, 16)
    assert config.kv_bytes_per_token(2) == 2 * 2 * 2 * 16 * 2
    assert config.bos_token_id == 256
    assert checkpoint.eos_token_ids == (260, 261, 257)
    assert (checkpoint.generation.temperature, checkpoint.generation.top_p) == (0.6, 0.9)
    assert checkpoint.generation.top_k == 0
    assert checkpoint.generation.repetition_penalty is None


def test_without_generation_config_the_eos_ids_come_from_the_config(tmp_path):
    assert load(tmp_path, eos_token_id=7).eos_token_ids == (7,)
    assert load(tmp_path, eos_token_id=None).eos_token_ids == ()


def test_do_sample_false_means_greedy(tmp_path):
    write_llama_checkpoint(tmp_path, generation_config={"do_sample": False, "temperature": 0.7})
    assert load_checkpoint(tmp_path).generation.temperature == 0.0


def test_absent_keys_take_the_defaults_of_transformers(tmp_path):
    config = load(
        tmp_path,
        remove=[
            "num_key_value_heads",
            "rms_norm_eps",
            "rope_theta",
            "rope_scaling",
            "tie_word_embeddings",
            "attention_bias",
            "mlp_bias",
            "max_position_embeddings",
            "hidden_act",
        ],
    ).config
    assert (config.num_kv_heads, config.rms_norm_eps, config.max_position_embeddings) == (4, 1e-6, 2048)
    assert not (config.tie_word_embeddings or config.qkv_bias or config.output_bias or config.mlp_bias)
    assert config.ropes == (RopeConfig(theta=10000.0),)
    assert config.layers == (LayerConfig(window=0, rope=0, experts=False),) * 2


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"hidden_act": "gelu"}, "hidden_act 'gelu' is not supported; known: silu"),
        ({"rope_scaling": "linear"}, 'rope_scaling must be an object, but it is "linear"'),
        ({"hidden_size": "64"}, 'hidden_size must be an integer of at least 1, but it is "64"'),
        ({"hidden_size": None}, "hidden_size must be an integer of at least 1, but it is absent"),
        ({"num_key_value_heads": 3}, "must be a multiple of num_key_value_heads 3"),
        ({"hidden_size": 66}, "without head_dim, hidden_size 66 must be a multiple"),
        ({"head_dim": 15}, "head_dim must be even"),
        ({"tie_word_embeddings": "yes"}, "tie_word_embeddings must be true or false"),
        ({"eos_token_id": "x"}, "eos_token_id must be a token id or a list of token ids"),
        ({"rms_norm_eps": 0}, "rms_norm_eps must be a number greater than 0"),
    ],
)
def test_an_unusable_config_is_refused_in_words(tmp_path, changes, message):
    with pytest.raises(CheckpointError, match=message) as caught:
        load(tmp_path, **changes)
    assert str(tmp_path / "config.json") in str(caught.value)


def test_a_missing_directory_or_config_is_named(tmp_path):
    with pytest.raises(
        CheckpointError, match=r"is not a directory; give the directory that holds config\.json"
    ):
        load_checkpoint(tmp_path / "nothing")
    with pytest.raises(CheckpointError, match=r"config\.json does not exist"):
        load_checkpoint(tmp_path)


@pytest.mark.parametrize("text", ["{", "[]", "\xff\xfe"])
def test_a_damaged_config_is_named(tmp_path, text):
    (tmp_path / "config.json").write_text(text, encoding="latin-1")
    with pytest.raises(
        CheckpointError, match=r"config\.json (cannot be read as JSON|must hold a JSON object)"
    ):
        load_checkpoint(tmp_path)
