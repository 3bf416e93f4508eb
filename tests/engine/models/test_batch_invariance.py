"""A request's text does not depend on how it is computed: chunks, neighbours, cached prefixes, page sizes."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from rhizome_engine.runner import ModelRunner
from rhizome_engine.sampling.params import SamplingParams
from rhizome_testing.checkpoints import LlamaShape, write_llama_checkpoint

NUM_TOKENS = 40
RNG = np.random.default_rng(3)
PROMPT = RNG.integers(0, 256, 75).tolist()
NEIGHBOURS = [RNG.integers(0, 256, length).tolist() for length in RNG.integers(1, 200, 15)]


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory):
    return write_llama_checkpoint(tmp_path_factory.mktemp("invariance") / "model", LlamaShape(), seed=2)


def make_runner(checkpoint, page_size=16):
    return ModelRunner(
        checkpoint,
        device="cpu",
        dtype="float32",
        page_size=page_size,
        num_pages=6144 // page_size,
        max_num_tokens=4096,
    )


@pytest.fixture(
    params=[SamplingParams(temperature=0.0), SamplingParams(temperature=0.8, top_p=0.9, top_k=40)]
)
def params(request):
    return request.param


@pytest.fixture
def alone(checkpoint, drive, sequence, params):
    """The text of PROMPT computed by itself, in one prefill."""
    (text,) = drive(make_runner(checkpoint)).generate([sequence(PROMPT, params, seed=5)], NUM_TOKENS)
    return text


@pytest.mark.parametrize("chunk", [1, 7, 512])
def test_prefill_in_chunks_gives_the_same_text(checkpoint, drive, sequence, params, alone, chunk):
    driver = drive(make_runner(checkpoint))
    assert driver.generate([sequence(PROMPT, params, seed=5)], NUM_TOKENS, chunk) == [alone]


@pytest.mark.parametrize("page_size", [1, 32, 256])
def test_any_page_size_gives_the_same_text(checkpoint, drive, sequence, params, alone, page_size):
    driver = drive(make_runner(checkpoint, page_size))
    assert driver.generate([sequence(PROMPT, params, seed=5)], NUM_TOKENS, 7) == [alone]


@pytest.mark.parametrize("chunk", [7, 512])
def test_a_batch_of_16_gives_the_same_text(checkpoint, drive, sequence, params, alone, chunk):
    driver = drive(make_runner(checkpoint))
    others = [sequence(prompt, params, seed=index) for index, prompt in enumerate(NEIGHBOURS)]
    batch = [*others[:9], sequence(PROMPT, params, seed=5), *others[9:]]
    assert driver.generate(batch, NUM_TOKENS, chunk)[9] == alone


def test_neighbours_that_join_and_leave_do_not_change_the_text(checkpoint, drive, sequence, params, alone):
    driver = drive(make_runner(checkpoint))
    subject = sequence(PROMPT, params, seed=5)
    waiting = [sequence(prompt, params, seed=index) for index, prompt in enumerate(NEIGHBOURS)]
    running = []
    for step in range(10**6):
        if len(subject.output) == NUM_TOKENS:
            break
        if waiting and step % 3 == 0:
            running.insert(0, waiting.pop())
        if step % 4 == 3 and len(running) > 2:
            left = running.pop()  # its pages are reused with its keys still in them
            driver.free += left.pages
        rows = [*running[:1], subject, *running[1:]]
        driver.step((row, min(11, len(row.ids) - row.computed)) for row in rows)
    assert subject.output == alone


def test_a_cached_prefix_gives_the_same_text(checkpoint, drive, sequence, params, alone):
    driver = drive(make_runner(checkpoint))
    first = sequence([*PROMPT[:64], 1, 2, 3], params)
    driver.generate([first], 5)
    second = sequence(PROMPT, params, seed=5)
    second.pages, second.computed = first.pages[:4], 64
    assert driver.generate([second], NUM_TOKENS) == [alone]


def test_a_prefix_that_ends_inside_a_copied_page_gives_the_same_text(
    checkpoint, drive, sequence, params, alone
):
    driver = drive(make_runner(checkpoint))
    first = sequence([*PROMPT[:70], 1, 2, 3], params)
    driver.generate([first], 5)
    second = sequence(PROMPT, params, seed=5)
    second.pages, second.computed = [*first.pages[:4], driver.free.pop()], 70
    driver.runner.kv.copy_page(first.pages[4], second.pages[4], 70 - 64)
    assert driver.generate([second], NUM_TOKENS) == [alone]


def test_bfloat16_runs_and_stays_near_float32(checkpoint, drive):
    exact = drive(make_runner(checkpoint)).all_logits(PROMPT, [75])
    runner = ModelRunner(checkpoint, device="cpu", dtype="bfloat16", num_pages=64)
    rounded = drive(runner).all_logits(PROMPT, [30, 1, 44])
    assert rounded.dtype == torch.float32
    assert (rounded - exact).abs().max() / exact.abs().max() < 0.1
