"""What the kernels are made of, each beside a plain definition."""

from __future__ import annotations

import numpy as np
import pytest
import torch
import triton
import triton.language as tl
from tests.engine.sampling.reference import Row
from tests.engine.sampling.triton.fused import DEVICE, Scene

from rhizome_engine.sampling import counter_rng
from rhizome_engine.sampling.logit_edits import LogitEdits
from rhizome_engine.sampling.params import SamplingParams
from rhizome_engine.sampling.staging import to_device
from rhizome_engine.sampling.token_table import TokenTable
from rhizome_engine.sampling.triton.counter_rng import exponentials, row_key, token_bits
from rhizome_engine.sampling.triton.normalisers import log_normalisers
from rhizome_engine.sampling.triton.penalties import penalise
from rhizome_engine.sampling.triton.top_k import top_k_mass


@triton.jit
def _numbers(seeds, positions, bits, times, WIDTH: tl.constexpr):
    row = tl.program_id(0)
    key = row_key(tl.load(seeds + row), tl.load(positions + row))
    tokens = tl.arange(0, WIDTH)
    tl.store(bits + row * WIDTH + tokens, token_bits(key, tokens).to(tl.int64))
    tl.store(times + row * WIDTH + tokens, exponentials(key, tokens))


def test_random_bits_are_the_same_and_times_differ_by_rounding():
    width = 8192
    seeds = torch.tensor([0, 1, -1, 2**63 - 1, -(2**63)], device=DEVICE)
    positions = torch.tensor([0, 7, 131_071, 1, 2**40], device=DEVICE)
    bits = torch.empty(5, width, dtype=torch.int64, device=DEVICE)
    times = torch.empty(5, width, device=DEVICE)
    _numbers[(5,)](seeds, positions, bits, times, WIDTH=width)
    keys = counter_rng.keys(seeds, positions)[:, None]
    tokens = torch.arange(width, device=DEVICE)
    expected_bits = counter_rng._mix_in_place(keys + (tokens + 1) * counter_rng._GOLDEN_GAMMA)
    assert torch.equal(bits, expected_bits)
    expected = counter_rng.exponentials(keys, tokens)
    torch.testing.assert_close(times, expected, rtol=1e-6, atol=0.0)
    assert expected.min() < 1e-4 and expected.max() > 8  # both ends of the range occur


@triton.jit
def _masses(
    logits, tops, held, limits, masses, vocab_size,
    NUM_BLOCKS: tl.constexpr, BLOCK: tl.constexpr, BLOCKS: tl.constexpr, HELD: tl.constexpr,
):  # fmt: skip
    row = tl.program_id(0)
    row_tops = tops + row * NUM_BLOCKS
    blocks = tl.arange(0, BLOCKS)
    top = tl.load(row_tops + blocks, mask=blocks < NUM_BLOCKS, other=float("-inf"))
    mass = top_k_mass(
        logits + row * vocab_size, logits, False, vocab_size, row_tops, held + row * HELD,
        tl.load(limits + row), tl.max(top, axis=0), 1.0, False, NUM_BLOCKS, BLOCK, BLOCKS, 4, HELD,
    )  # fmt: skip
    tl.store(masses + row, mass)


ROWS = {
    "spread": lambda rng: rng.normal(0, 3, 1000),
    "all negative": lambda rng: rng.normal(-900, 200, 1000),
    "around zero": lambda rng: np.where(rng.random(1000) < 0.5, -0.0, 0.0),
    "many equals": lambda rng: rng.normal(0, 1, 1000).round(),
    "few finite": lambda rng: np.where(rng.random(1000) < 0.03, rng.normal(0, 3, 1000), -np.inf),
    "ascending": lambda rng: np.linspace(-5, 5, 1000),
}


@pytest.mark.parametrize("kind", ROWS)
def test_the_weight_of_the_likeliest_k_is_that_of_a_sort(kind):
    block, held_size, limits = 64, 32, [1, 5, 16, 40, 999]
    row = torch.from_numpy(ROWS[kind](np.random.default_rng(3))).float()
    logits = row.expand(len(limits), -1).contiguous().to(DEVICE)
    padded = torch.nn.functional.pad(row, (0, 24), value=-torch.inf)
    tops = padded.view(16, block).amax(dim=1).expand(len(limits), -1).contiguous().to(DEVICE)
    held = torch.empty(len(limits), held_size, device=DEVICE)
    masses = torch.empty(len(limits), dtype=torch.float64, device=DEVICE)
    wanted = torch.tensor(limits, dtype=torch.int32, device=DEVICE)
    _masses[(len(limits),)](
        logits, tops, held, wanted, masses, 1000, NUM_BLOCKS=16, BLOCK=block, BLOCKS=16, HELD=held_size
    )
    weights = (row.double() - row.max()).exp().sort(descending=True).values
    expected = torch.stack([weights[:limit].sum() for limit in limits])
    torch.testing.assert_close(masses.cpu(), expected, rtol=1e-6, atol=0.0)


def test_penalties_are_bitwise_those_of_the_sampler_and_leave_no_counts():
    rng = np.random.default_rng(1)
    params = [
        SamplingParams(repetition_penalty=1.3),
        SamplingParams(frequency_penalty=0.37, presence_penalty=-0.21),
        SamplingParams(repetition_penalty=0.7, frequency_penalty=-0.123, presence_penalty=1.1),
        SamplingParams(),
    ]
    rows = [
        Row(p, prompt=rng.integers(0, 9, 20).tolist(), output=rng.integers(3, 40, 30).tolist())
        for p in params
    ]
    scene = Scene(rows, 300)
    logits = torch.from_numpy(rng.normal(0, 3, (4, 300))).float().to(DEVICE)
    expected, table = logits.clone(), scene.table()
    edits = LogitEdits(scene.batch, None)
    edits.apply(expected, to_device(edits.arrays, DEVICE), table)
    for _ in range(2):
        found = logits.clone()
        penalise(found, scene.settings(), table)
        assert torch.equal(found, expected)
        assert not table.counters(300).any()
    assert torch.equal(expected[3], logits[3]) and not torch.equal(expected[2], logits[2])
    with pytest.raises(ValueError, match="300 tokens, not 301"):
        table.counters(301)


def test_late_tokens_come_from_their_slots_and_others_stay():
    table = TokenTable(4, 10, DEVICE)
    slots, positions = torch.tensor([2, 0], device=DEVICE), torch.tensor([7, 3], device=DEVICE)
    table.store(slots, positions, torch.tensor([77, 33], device=DEVICE))
    token_ids = torch.tensor([1, -5, 2, -5, 9], device=DEVICE)
    places = torch.tensor([0, 3, 9, 7, 10**6], device=DEVICE)
    late = torch.tensor([-1, 0, -1, 2, -1], dtype=torch.int32, device=DEVICE)
    table.fill_late_static(token_ids, places, late)
    assert token_ids.tolist() == [1, 33, 2, 77, 9]


def test_log_normalisers_are_those_of_log_softmax():
    logits = torch.randn(5, 4099, generator=torch.Generator().manual_seed(0)) * 5
    logits[1, :3000] = -torch.inf
    logits[2, 7] = torch.nan
    logits[3] = -torch.inf
    rows = torch.tensor([4, 1, 2, 3])
    found = log_normalisers(logits.to(DEVICE), rows.to(DEVICE)).cpu()
    torch.testing.assert_close(found[:2], logits[rows[:2]].logsumexp(dim=-1))
    assert found[2].isnan() and found[3] == -torch.inf
