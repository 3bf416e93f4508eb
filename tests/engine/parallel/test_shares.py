"""Ranks together have every row and column, and what cannot be shared out is refused."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import Tensor

from rhizome_engine.checkpoint.loader import load_checkpoint
from rhizome_engine.models.registry import family_of
from rhizome_engine.parallel.runner import devices_of_ranks, settings_of_rank
from rhizome_engine.parallel.shares import config_of_rank, shares_of_rank, vocabulary_rows, vocabulary_span
from rhizome_engine.runner import KVBudgetError, ModelRunner
from rhizome_engine.runner.memory import agree_on_pages
from rhizome_engine.weights.format import Grouped, Int8
from rhizome_engine.weights.share import Share
from rhizome_testing.checkpoints import LlamaShape
from rhizome_testing.quantised_checkpoints import (
    awq_tensors,
    compressed_tensors,
    gptq_tensors,
    round_matrix,
    write_quantised_checkpoint,
)
from rhizome_testing.thread_ranks import ThreadGroup, in_threads


@pytest.mark.parametrize(
    ("name", "size"),
    [
        ("llama, grouped-query", 4),
        ("llama, biases, one key-value head, tied", 8),
        ("phi3, fused", 2),
        ("qwen3 moe", 4),
    ],
)
def test_all_ranks_together_have_every_element(name: str, size: int, family: Callable[..., Path]) -> None:
    config = load_checkpoint(family(name)).config
    names = family_of(config.architecture).names
    repeats = max(size // config.num_kv_heads, 1)
    counted: dict[str, Tensor] = {}
    for rank in range(size):
        for module, share in shares_of_rank(config, names, rank, size).items():
            counts = counted.setdefault(module, torch.zeros(share.shape, dtype=torch.int64))
            for first, stop in share.rows:
                counts[first:stop, slice(*share.columns)] += 1
    for module, counts in counted.items():
        repeated = repeats if module.endswith(("k_proj", "v_proj")) else 1
        assert (counts == repeated).all(), module
    assert len(counted) > 4 * config.num_layers


def test_the_vocabulary_is_padded_to_equal_parts() -> None:
    assert [vocabulary_span(330, rank, 4) for rank in range(4)] == [
        (0, 96),
        (96, 192),
        (192, 288),
        (288, 330),
    ]
    assert vocabulary_span(20, 3, 4) == (20, 20)
    assert vocabulary_rows(128256, 8) == 128256 // 8


@pytest.mark.parametrize(
    ("changes", "size", "words"),
    [
        ({}, 3, "8 query heads are no multiple of 3"),
        ({"num_kv_heads": 6, "num_heads": 12}, 4, "6 key-value heads can neither be shared out among 4 nor"),
        ({"intermediate_size": 100}, 8, "the intermediate size 100 is no multiple of 8"),
        ({}, 65, "ranks are 2 to 64"),
    ],
)
def test_what_cannot_be_shared_out_is_refused(
    changes: dict[str, int], size: int, words: str, family: Callable[..., Path]
) -> None:
    config = replace(load_checkpoint(family("llama, grouped-query")).config, **changes)
    with pytest.raises(ValueError, match=f"--tensor-parallel {size}: {words}.* can be shared out among"):
        config_of_rank(config, size)


def test_experts_that_cannot_be_cut_are_refused(family: Callable[..., Path]) -> None:
    config = load_checkpoint(family("qwen3 moe", moe_intermediate_size=36)).config
    with pytest.raises(ValueError, match="an expert's intermediate size 36 is no multiple of 8"):
        config_of_rank(config, 8)


def test_groups_are_kept_whole() -> None:
    share = Share((64, 256), ((0, 64),), (128, 256))
    assert share.kept_format("down", Grouped(4, 128)) == Grouped(4, 128)
    assert share.kept_format("down", Grouped(4, 256)) == Grouped(4, 128), "one scale per row"
    assert share.kept_format("down", Int8()) == Int8()
    with pytest.raises(ValueError, match="down has 256 columns in groups of 64, and a rank would get 96"):
        replace(share, columns=(96, 192)).kept_format("down", Grouped(4, 64))


SHAPE = LlamaShape(hidden_size=128, intermediate_size=256, num_attention_heads=4, num_key_value_heads=2)
W8A8 = {
    "quant_method": "compressed-tensors",
    "format": "int-quantized",
    "config_groups": {
        "group_0": {
            "targets": ["Linear"],
            "weights": {"num_bits": 8, "type": "int", "strategy": "channel", "symmetric": True},
            "input_activations": {"num_bits": 8, "type": "int", "strategy": "token", "dynamic": True},
        }
    },
}
QUANTISED = {
    "gptq": (
        {"quant_method": "gptq", "bits": 4, "group_size": 32},
        lambda matrix: round_matrix(matrix, 4, 32, symmetric=False),
        gptq_tensors,
    ),
    "awq": (
        {"quant_method": "awq", "bits": 4, "group_size": 64},
        lambda matrix: round_matrix(matrix, 4, 64, symmetric=False),
        awq_tensors,
    ),
    "w8a8": (
        W8A8,
        lambda matrix: round_matrix(matrix, 8, matrix.shape[1], symmetric=True, dtype=torch.float32),
        lambda module, rounded: compressed_tensors(module, rounded, packed=False, symmetric=True),
    ),
}


@pytest.mark.parametrize("name", QUANTISED)
def test_the_integers_of_a_checkpoint_are_shared_out_as_they_are(name: str, tmp_path: Path) -> None:
    """All ranks' parts, put together again, are the matrix that one rank has, bit for bit."""
    config, round_module, write_module = QUANTISED[name]
    path, _ = write_quantised_checkpoint(
        tmp_path, SHAPE, config, lambda _module, matrix: round_module(matrix), write_module
    )
    settings = {"device": "cpu", "num_pages": 8, "num_threads": 1, "kv_cache_dtype": "float32"}
    whole = ModelRunner(path, **settings).model.targets.matrices

    def parts(group: ThreadGroup) -> dict[str, tuple[Share | None, Tensor, str]]:
        targets = ModelRunner(path, group=group, **settings).model.targets.matrices
        return {
            module: (
                target.share,
                target.weight.to_dense()[target.start :][: target.rows],
                str(target.weight.format),
            )
            for module, target in targets.items()
        }

    together = {module: torch.full(target.shape, torch.nan) for module, target in whole.items()}
    for rank in in_threads(2, parts):
        for module, (share, dense, kept) in rank.items():
            assert share is not None
            assert kept == str(whole[module].weight.format)
            row = 0
            for first, stop in share.rows:
                together[module][first:stop, slice(*share.columns)] = dense[row : row + stop - first]
                row += stop - first
    for module, target in whole.items():
        expected = target.weight.to_dense()[target.start :][: target.rows]
        assert torch.equal(together[module], expected), module


def test_groups_that_would_be_cut_are_refused(tmp_path: Path) -> None:
    shape = LlamaShape(hidden_size=128, intermediate_size=192, num_attention_heads=4, num_key_value_heads=2)
    config, _, _ = QUANTISED["gptq"]
    path, _ = write_quantised_checkpoint(
        tmp_path,
        shape,
        {**config, "group_size": 64},
        lambda _module, matrix: round_matrix(matrix, 4, 64, symmetric=False),
        gptq_tensors,
    )
    with pytest.raises(
        ValueError, match=r"down_proj has 192 columns in groups of 64, and a rank would get 96"
    ):
        in_threads(2, lambda group: ModelRunner(path, device="cpu", num_pages=8, group=group))


def test_the_least_memory_decides() -> None:
    pages = [70, 50, 90]
    assert in_threads(3, lambda group: agree_on_pages(group, lambda: pages[group.rank])) == [50] * 3
    assert agree_on_pages(None, lambda: 7) == 7

    def plan(group: ThreadGroup) -> int:
        if group.rank == 1:
            raise KVBudgetError("does not fit")
        return 10

    def outcome(group: ThreadGroup) -> str:
        with pytest.raises(KVBudgetError) as caught:
            agree_on_pages(group, lambda: plan(group))
        return str(caught.value)

    assert [text[:12] for text in in_threads(2, outcome)] == ["another rank", "does not fit"]


def test_ranks_on_a_cpu_share_threads_and_memory() -> None:
    given = {"num_threads": 8, "memory_share": 0.5, "dtype": "float32"}
    assert settings_of_rank(given, "cpu", 4) == {
        "device": "cpu",
        "num_threads": 2,
        "memory_share": 0.125,
        "dtype": "float32",
    }
    assert settings_of_rank({"num_threads": 1}, "cpu", 4)["num_threads"] == 1
    assert settings_of_rank(given, "cuda:1", 4) == {**given, "device": "cuda:1"}
    assert devices_of_ranks("cpu", 2) == ["cpu", "cpu"]
