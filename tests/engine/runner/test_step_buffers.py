"""Arrays of a step on the device, against what a loop over rows and tokens puts there."""

from __future__ import annotations

import dataclasses
import itertools

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch.utils._python_dispatch import TorchDispatchMode

from rhizome_engine.batch import Batch
from rhizome_engine.runner.buckets import decode_buckets, prefill_buckets, prefill_rows, smallest_bucket
from rhizome_engine.runner.page_tables import PageChanges
from rhizome_engine.runner.recording import Rerun
from rhizome_engine.runner.step_buffers import StepBuffers, StepShape
from rhizome_engine.sampling.params import SamplingParams
from rhizome_testing.sampling_batch import sampling_batch

CPU = torch.device("cpu")
NOBODY = 40
SHAPES = [
    StepShape(8, 8, 11, True), StepShape(3, 3, 4, True), StepShape(64, 8, 9), StepShape(64), StepShape(100)
]  # fmt: skip


def random_batch(shape, seed):
    """Any batch that fits a shape."""
    random = np.random.default_rng(seed)
    if shape.is_decode:
        lengths = [1] * random.integers(1, shape.num_rows + 1)
    elif shape.num_rows:
        lengths = random.integers(1, 9, random.integers(1, shape.num_rows + 1)).tolist()
    else:
        lengths = [int(random.integers(1, shape.num_tokens + 1))]
    tokens, rows = sum(lengths), len(lengths)
    sampled = sorted(random.permutation(rows)[: random.integers(0, rows + 1)].tolist())
    late = np.sort(random.permutation(tokens)[: random.integers(0, tokens + 1)])
    params = [
        SamplingParams(
            temperature=float(random.integers(0, 3)), top_k=int(random.integers(0, 9)), top_p=0.5, min_p=0.25,
            repetition_penalty=1.5, frequency_penalty=0.75, presence_penalty=-0.5,
        )
        for _ in sampled
    ]  # fmt: skip
    return Batch(
        token_ids=random.integers(0, 1000, tokens),
        positions=random.integers(0, 1000, tokens),
        slot_mapping=random.integers(0, 1000, tokens),
        query_start=np.cumsum([0, *lengths]).astype(np.int32),
        context_len=random.integers(1, 1000, rows).astype(np.int32),
        page_table=np.zeros((rows, 1), np.int32),
        slots=random.permutation(NOBODY)[:rows],
        sampling=sampling_batch(
            params, random.integers(1, 1000, len(sampled)).tolist(), 1000, rows=sampled,
            seeds=[2**63 + int(seed) for seed in random.integers(0, 2**62, len(sampled))],
            num_prompt=random.integers(1, 1000, len(sampled)).tolist(),
        ),
        late=late,
        late_slots=random.integers(0, NOBODY, len(late)),
    )  # fmt: skip


@given(steps=st.lists(st.tuples(st.sampled_from(SHAPES), st.integers(0, 2**31)), min_size=1, max_size=8))
def test_the_device_gets_a_batch_and_padding_behind_it(steps):
    buffers = StepBuffers(SHAPES, NOBODY, CPU)
    for shape, seed in steps:
        batch = random_batch(shape, seed)
        num_changes = seed % (shape.num_changes + 1)
        changes = PageChanges(np.arange(num_changes) + 5, np.arange(num_changes, dtype=np.int32), 1234)
        arrays = buffers.send(shape, batch, changes)

        def padded(values, size, padding):
            return [*values, *[padding] * (size - len(values))]

        tokens, rows = shape.num_tokens, shape.num_rows
        assert arrays.token_ids.tolist() == padded(batch.token_ids, tokens, 0)
        assert arrays.positions.tolist() == padded(batch.positions, tokens, 0)
        assert arrays.slot_mapping.tolist() == padded(batch.slot_mapping, tokens, -1)
        late = dict(zip(batch.late.tolist(), batch.late_slots.tolist(), strict=True))
        assert arrays.late_slots.tolist() == [late.get(place, -1) for place in range(tokens)]
        if not rows:
            assert not len(arrays.context_len) and not len(arrays.query_start)
            continue
        assert arrays.context_len.tolist() == padded(batch.context_len, rows, 0)
        assert arrays.row_slots.tolist() == padded(batch.slots, rows, NOBODY)
        starts = range(rows + 1) if shape.is_decode else batch.query_start.tolist()
        assert arrays.query_start.tolist() == padded(starts, rows + 1, batch.num_tokens)
        if not shape.is_decode:
            last = [int(batch.query_start[row + 1]) - 1 for row in batch.sampling.rows]
            assert arrays.sampled_tokens.tolist() == padded(last, rows, 0)
        assert arrays.change_places.tolist() == padded(changes.places, shape.num_changes, 1234)
        assert arrays.change_pages.tolist() == padded(changes.pages, shape.num_changes, 0)
        neutral = {"slots": -1, "top_p": 1.0, "repetition_penalty": 1.0}
        for name, values in arrays.sampling._asdict().items():
            expected = getattr(batch.sampling, name)
            if name == "seeds":
                expected = expected.view(np.int64)
            assert values.tolist() == padded(expected.tolist(), rows, neutral.get(name, 0)), name


def test_padding_alone_is_what_stands_behind_a_batch():
    for shape in SHAPES[:3]:
        buffers = StepBuffers(SHAPES, NOBODY, CPU)
        buffers.send(shape, random_batch(shape, 1))
        arrays = buffers.send(shape, None, PageChanges(np.empty(0, np.int64), np.empty(0, np.int32), 99))
        assert set(arrays.slot_mapping.tolist()) == set(arrays.late_slots.tolist()) == {-1}
        assert set(arrays.sampling.slots.tolist()) == {-1}
        assert set(arrays.context_len.tolist()) == {0} and set(arrays.row_slots.tolist()) == {NOBODY}
        assert set(arrays.change_places.tolist()) == {99}
        assert set(arrays.token_ids.tolist()) == set(arrays.positions.tolist()) == {0}
        starts = list(range(shape.num_rows + 1)) if shape.is_decode else [0] * (shape.num_rows + 1)
        assert arrays.query_start.tolist() == starts
        assert set(arrays.sampling.temperature.tolist()) == {0.0}
        assert set(arrays.sampling.repetition_penalty.tolist()) == {1.0}


def addresses(arrays):
    values = [getattr(arrays, field.name) for field in dataclasses.fields(arrays) if field.name != "sampling"]
    return [value.data_ptr() for value in (*values, *arrays.sampling)]


def test_arrays_of_a_shape_stay_where_they_are_and_do_not_overlap():
    buffers = StepBuffers(SHAPES, NOBODY, CPU)
    before = addresses(buffers.arrays(SHAPES[0]))
    for seed in range(9):
        for shape in SHAPES:
            arrays = buffers.send(shape, random_batch(shape, seed))
    assert addresses(buffers.send(SHAPES[0], random_batch(SHAPES[0], 0))) == before
    tensors = [*(getattr(arrays, f.name) for f in dataclasses.fields(arrays) if f.name != "sampling")]
    spans = sorted((t.data_ptr(), t.data_ptr() + t.nbytes) for t in tensors if len(t))
    assert all(end <= start for (_, end), (start, _) in itertools.pairwise(spans))
    assert all(start % 16 == spans[0][0] % 16 for start, _ in spans)


class Operations(TorchDispatchMode):
    """Names of what PyTorch is asked to do."""

    def __init__(self):
        super().__init__()
        self.names = []

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        self.names.append(str(func))
        return func(*args, **(kwargs or {}))


@pytest.mark.parametrize("overlap", [False, True], ids=["in_turn", "overlap"])
def test_a_step_that_is_replayed_makes_no_tensor(make_played, monkeypatch, overlap):
    """All that is left to the host is one copy to the device and one back, both between buffers it has."""
    played = make_played("rerun", max_batch_size=4, num_pages=400, overlap=False)
    for number in range(4):
        played.add(str(number), [number] * 9, SamplingParams(temperature=0.0), max_tokens=150)
    for _ in range(16):
        played.step()
    counts = played.runner.counts
    replayed = counts.replayed
    assert replayed
    if overlap:  # the step before is not read yet
        played.core._config = dataclasses.replace(played.core._config, overlap=True)
        played.step()
        played.step()
        replayed = counts.replayed
    with Operations() as everything:
        played.step()
    assert any("mm" in name or "linear" in name for name in everything.names), "the model is seen"
    monkeypatch.setattr(Rerun, "replay", lambda self: None)
    with Operations() as operations:
        for _ in range(100):
            played.step()
    assert counts.replayed == replayed + 101 and counts.eager <= 16
    assert operations.names == ["aten.copy_.default"] * 200


@pytest.mark.parametrize(
    ("most", "expected"),
    [
        (1, [1]),
        (5, [1, 2, 4, 5]),
        (32, [1, 2, 4, 8, 16, 24, 32]),
        (100, [1, 2, 4, 8, 16, 24, 32, 40, 48, 56, 64, 80, 96, 100]),
    ],
)
def test_row_buckets(most, expected):
    assert decode_buckets(most) == expected
    assert smallest_bucket(expected, most) == most and smallest_bucket(expected, most + 1) is None


def test_large_row_buckets():
    buckets = decode_buckets(1000)
    assert buckets[-3:] == [960, 992, 1000] and len(buckets) < 50
    assert all(rows - before <= max(8, rows / 5) for before, rows in itertools.pairwise(buckets))
    for rows in range(1, 1001):
        assert smallest_bucket(buckets, rows) == min(bucket for bucket in buckets if bucket >= rows)


@pytest.mark.parametrize(
    ("most", "expected"),
    [(8192, [64, 128, 256, 512]), (512, [64, 128, 256, 512]), (100, [64, 100]), (30, [30])],
)
def test_token_buckets(most, expected):
    assert prefill_buckets(most) == expected


@pytest.mark.parametrize(
    ("tokens", "most", "expected"), [(512, 256, [8, 64]), (512, 32, [8, 32]), (64, 4, [4]), (5, 32, [5])]
)
def test_rows_of_prefills(tokens, most, expected):
    assert prefill_rows(tokens, most) == expected
