"""What a checkpoint says about pooling, in sentence-transformers' files."""

from __future__ import annotations

import json

import pytest

from rhizome_engine.embedding.pooling import Pooling
from rhizome_engine.embedding.recommendation import read_recommendation

LIBRARY = "sentence_transformers.models"


def write(checkpoint, pooling=None, modules=("Transformer", "Pooling", "Normalize"), folder="1_Pooling"):
    if modules is not None:
        paths = {"Transformer": "", "Pooling": folder}
        entries = [
            {"idx": i, "name": str(i), "path": paths.get(kind, f"{i}_{kind}"), "type": f"{LIBRARY}.{kind}"}
            for i, kind in enumerate(modules)
        ]
        (checkpoint / "modules.json").write_text(json.dumps(entries))
    if pooling is not None:
        (checkpoint / folder).mkdir()
        (checkpoint / folder / "config.json").write_text(json.dumps(pooling))
    return read_recommendation(checkpoint)


def modes(**chosen):
    names = ("cls_token", "mean_tokens", "max_tokens", "mean_sqrt_len_tokens", "lasttoken")
    return {
        "word_embedding_dimension": 64,
        "include_prompt": True,
        **{f"pooling_mode_{name}": chosen.get(name, False) for name in names},
    }


def test_without_files_it_is_the_mean(tmp_path):
    assert read_recommendation(tmp_path).choose() is Pooling.MEAN


@pytest.mark.parametrize(
    ("config", "expected"),
    [
        (modes(mean_tokens=True), Pooling.MEAN),
        (modes(lasttoken=True), Pooling.LAST_TOKEN),
        (modes(cls_token=True), Pooling.CLS),
        ({"embedding_dimension": 64, "pooling_mode": "lasttoken"}, Pooling.LAST_TOKEN),
        ({"embedding_dimension": 64, "pooling_mode": "mean"}, Pooling.MEAN),
    ],
)
def test_each_pooling_is_understood(tmp_path, config, expected):
    assert write(tmp_path, config).choose() is expected


def test_the_folder_is_the_one_that_modules_json_names(tmp_path):
    assert write(tmp_path, modes(cls_token=True), folder="2_Pooling").choose() is Pooling.CLS


def test_the_usual_folder_counts_without_modules_json(tmp_path):
    assert write(tmp_path, modes(lasttoken=True), modules=None).choose() is Pooling.LAST_TOKEN


@pytest.mark.parametrize(
    ("config", "words"),
    [
        (modes(max_tokens=True), "pooling_mode_max_tokens"),
        (modes(mean_tokens=True, cls_token=True), "pooling_mode_cls_token and pooling_mode_mean_tokens"),
        (modes(), "no pooling"),
        ({"pooling_mode": "weightedmean"}, "weightedmean"),
        ([1, 2], "damaged"),
    ],
)
def test_what_is_not_implemented_is_left_to_the_caller(tmp_path, config, words):
    recommendation = write(tmp_path, config)
    assert recommendation.pooling is None
    with pytest.raises(ValueError, match=f"{words}.*choose mean, last_token or cls"):
        recommendation.choose()


def test_a_layer_after_the_pooling_is_not_ignored(tmp_path):
    recommendation = write(tmp_path, modes(mean_tokens=True), modules=("Transformer", "Pooling", "Dense"))
    assert recommendation.pooling is None and "Dense" in recommendation.problem


def test_damaged_files_are_no_reason_not_to_generate(tmp_path):
    (tmp_path / "modules.json").write_text("{")
    assert "damaged" in read_recommendation(tmp_path).problem
