"""Whole models with Triton kernels against the same models with PyTorch's: logits and greedy texts."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch

from rhizome_engine.kernels.triton.triton_kernels import TritonKernels
from rhizome_testing.family_cases import CASES
from rhizome_testing.random_models import save_random_model

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
PROMPT = np.random.default_rng(7).integers(0, 256, 60).tolist()
FAMILIES = [  # biases, gelu, norms after blocks and soft caps, multipliers, experts
    "llama, multi-query, biases, tied",
    "gemma2, soft caps, untied",
    "granite, biases, tied",
    "mixtral, window",
]


def saved(name, path):
    """Write a family's model of two layers: the interpreter is slow."""
    case = replace(CASES[name], options={**CASES[name].options, "num_hidden_layers": 2})
    return save_random_model(case.make(), path, seed=case.seed)


@pytest.fixture(scope="module", params=FAMILIES)
def family(request, tmp_path_factory):
    return saved(request.param, tmp_path_factory.mktemp("family"))


@pytest.fixture(scope="module")
def llama(tmp_path_factory):
    return saved("llama, grouped-query", tmp_path_factory.mktemp("llama"))


@pytest.fixture
def runners(load):
    def loaded(path):
        options = {"device": DEVICE, "attention": "sdpa"}
        return [load(path, kernels, **options) for kernels in ("torch", "triton")]

    return loaded


def test_logits_of_every_kind_of_step_agree(family, runners, drive):
    torch_runner, triton_runner = runners(family)
    assert isinstance(triton_runner.numerics.kernels, TritonKernels)
    chunks = [17, 1, 2, 1]  # a large batch, one row, a small batch
    expected, found = (
        drive(runner).all_logits(PROMPT[:21], chunks) for runner in (torch_runner, triton_runner)
    )
    assert (found - expected).abs().max() <= 1e-4 * expected.abs().max()


@pytest.mark.parametrize("rows", [1, 3, 16, 17])
def test_greedy_texts_agree_for_every_size_of_a_batch(llama, runners, drive, sequence, rows):
    texts = [
        drive(runner).generate([sequence(PROMPT[row : row + 2 + row % 3]) for row in range(rows)], 3)
        for runner in runners(llama)
    ]
    assert texts[1] == texts[0]
    assert len({tuple(text) for text in texts[0]}) > rows // 4, "texts that differ"
