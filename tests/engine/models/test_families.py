"""Every family gives the logits and the text of transformers, from files as transformers writes them."""

from __future__ import annotations

import gc

import numpy as np
import pytest
import torch

from rhizome_engine.models.registry import ARCHITECTURES
from rhizome_testing.family_cases import CASES, PROMPT_TOKENS
from rhizome_testing.random_models import save_random_model

KERNELS = ("torch", "native")
PROMPT = np.random.default_rng(7).integers(0, 256, PROMPT_TOKENS).tolist()
NUM_TOKENS = 64
OF_EACH_ARCHITECTURE = {case.architecture: name for name, case in CASES.items()}


@pytest.fixture(scope="module", params=CASES)
def saved(request, tmp_path_factory):
    """A checkpoint and the transformers model that wrote it."""
    case = CASES[request.param]
    model = case.make()
    yield save_random_model(model, tmp_path_factory.mktemp("family"), seed=case.seed), model
    gc.collect()


@pytest.fixture(scope="module")
def expected(saved):
    """Logits of the prompt, [PROMPT_TOKENS, vocab_size]."""
    with torch.no_grad():
        return saved[1](torch.tensor([PROMPT])).logits[0]


@pytest.fixture(scope="module")
def text(saved, greedy):
    """The greedy continuation of the prompt."""
    return greedy(saved[1], PROMPT, NUM_TOKENS)


def relative_error(logits, expected):
    return float((logits - expected).abs().max() / expected.abs().max())


@pytest.mark.parametrize("kernels", KERNELS)
def test_logits_are_those_of_transformers_in_any_chunks(saved, expected, load, drive, kernels):
    runner = load(saved[0], kernels)
    assert relative_error(drive(runner).all_logits(PROMPT, [PROMPT_TOKENS]), expected) <= 1e-4
    runner = load(saved[0], kernels, page_size=5)
    chunks = [1] * 20 + [7] * 10 + [10]
    assert relative_error(drive(runner).all_logits(PROMPT, chunks), expected) <= 1e-4


@pytest.mark.parametrize("kernels", KERNELS)
def test_greedy_text_is_that_of_transformers_among_neighbours(saved, text, load, drive, sequence, kernels):
    neighbours = [sequence(PROMPT[start : start + 40]) for start in (3, 30, 55)]
    driver = drive(load(saved[0], kernels))
    outputs = driver.generate([*neighbours[:2], sequence(PROMPT), neighbours[2]], NUM_TOKENS, chunk=33)
    assert outputs[2] == text


@pytest.mark.parametrize("kernels", KERNELS)
@pytest.mark.parametrize(
    ("name", "stored"),
    [
        *[(name, torch.bfloat16) for name in OF_EACH_ARCHITECTURE.values()],
        (OF_EACH_ARCHITECTURE["LlamaForCausalLM"], torch.float16),
    ],
    ids=str,
)
def test_16_bit_files_are_computed_without_a_further_rounding(tmp_path, load, drive, name, stored, kernels):
    model = CASES[name].make()
    checkpoint = save_random_model(model, tmp_path, seed=CASES[name].seed, dtype=stored)
    with torch.no_grad():
        expected = model(torch.tensor([PROMPT])).logits[0]
    # Native kernels keep the matrices in 16 bits and compute in float32; the others widen them.
    runner = load(checkpoint, kernels, dtype="auto" if kernels == "native" else "float32")
    assert relative_error(drive(runner).all_logits(PROMPT, [60, 40]), expected) <= 1e-4


def test_every_architecture_has_a_case():
    assert set(OF_EACH_ARCHITECTURE) == set(ARCHITECTURES)
