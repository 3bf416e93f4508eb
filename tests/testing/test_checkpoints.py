"""Checkpoints made on the spot are whole, repeatable and readable by others."""

from __future__ import annotations

import json

import pytest
from safetensors.torch import load_file
from tokenizers import Tokenizer

from rhizome_testing.byte_tokenizer import SPECIAL_TOKENS
from rhizome_testing.checkpoints import LlamaShape, write_llama_checkpoint


def contents(directory):
    return {path.name: path.read_bytes() for path in directory.iterdir()}


def test_equal_arguments_give_equal_bytes_and_another_seed_other_weights(tmp_path):
    first, second, other = (
        contents(write_llama_checkpoint(tmp_path / name, seed=seed, num_shards=2))
        for name, seed in (("a", 1), ("b", 1), ("c", 2))
    )
    assert first == second
    assert {name for name in first if first[name] != other[name]} == {
        "model-00001-of-00002.safetensors",
        "model-00002-of-00002.safetensors",
    }


def test_shards_hold_what_one_file_holds(tmp_path):
    write_llama_checkpoint(tmp_path / "one")
    write_llama_checkpoint(tmp_path / "many", num_shards=4)
    whole = load_file(tmp_path / "one/model.safetensors")
    weight_map = json.loads((tmp_path / "many/model.safetensors.index.json").read_text())["weight_map"]
    assert set(weight_map) == set(whole)
    for name, filename in weight_map.items():
        assert load_file(tmp_path / "many" / filename)[name].equal(whole[name])


def test_the_tokenizer_has_one_token_per_byte(tmp_path):
    write_llama_checkpoint(tmp_path, LlamaShape(vocab_size=300))
    tokenizer = Tokenizer.from_file(str(tmp_path / "tokenizer.json"))
    text = "Grüße, 世界!\n\t😀"
    ids = tokenizer.encode(text).ids
    assert ids == list(text.encode())
    assert tokenizer.decode(ids) == text
    assert tokenizer.encode("<|eot_id|>").ids == [SPECIAL_TOKENS["<|eot_id|>"]]
    assert tokenizer.decode([SPECIAL_TOKENS["<|eot_id|>"]], skip_special_tokens=True) == ""
    assert tokenizer.decode([299]) == "<299>"
    assert tokenizer.get_vocab_size() == 300


def test_a_vocabulary_without_room_for_the_bytes_is_refused(tmp_path):
    with pytest.raises(ValueError, match="vocab_size must be at least 261"):
        write_llama_checkpoint(tmp_path, LlamaShape(vocab_size=200))
