"""The device's page table against a table that is sent whole."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from rhizome_engine.batch import Batch
from rhizome_engine.runner.page_tables import PageTables
from rhizome_testing.sampling_batch import sampling_batch

NUM_SLOTS, MAX_PAGES = 5, 8
EMPTY = np.empty(0, np.int64)
NO_SAMPLING = sampling_batch([], [], 10, rows=[])

step = st.fixed_dictionaries(
    {
        "slots": st.lists(st.integers(0, NUM_SLOTS - 1), min_size=1, unique=True),
        "seed": st.integers(0, 3),
        "lost": st.booleans(),
    }
)


def batch_of(slots, contexts, table):
    return Batch(
        token_ids=EMPTY,
        positions=EMPTY,
        slot_mapping=EMPTY,
        query_start=np.zeros(len(slots) + 1, np.int32),
        context_len=np.array(contexts, np.int32),
        page_table=table,
        slots=np.array(slots, np.int64),
        sampling=NO_SAMPLING,
    )


@given(steps=st.lists(step, min_size=1, max_size=12), page_size=st.sampled_from([1, 4]))
def test_after_every_step_the_device_has_the_pages_of_its_rows(steps, page_size):
    tables = PageTables(NUM_SLOTS, MAX_PAGES, page_size, torch.device("cpu"))
    device = np.zeros((NUM_SLOTS + 1, MAX_PAGES), np.int32)  # what it should hold
    known = device.copy()  # what it was told, which is more wherever something was lost
    for each in steps:
        random = np.random.default_rng([each["seed"], len(each["slots"])])
        contexts = random.integers(1, MAX_PAGES * page_size + 1, len(each["slots"]))
        used = -(-contexts // page_size)
        table = random.integers(0, 4, (len(contexts), int(used.max()))).astype(np.int32)
        if each["lost"]:
            tables.forget()
            known[:] = -1
        changes = tables.changes(batch_of(each["slots"], contexts, table))
        news = 0
        for row, slot in enumerate(each["slots"]):
            news += int((known[slot, : used[row]] != table[row, : used[row]]).sum())
            device[slot, : used[row]] = known[slot, : used[row]] = table[row, : used[row]]
        assert len(changes.places) == len(changes.pages) == len(set(changes.places.tolist())) == news
        first, rest = changes.split(len(changes.places) // 2)
        for part in (first, rest):
            padded = np.full(len(part.places) + 3, part.unused)
            padded[: len(part.places)] = part.places
            pages = np.zeros(len(padded), np.int32)
            pages[: len(part.pages)] = part.pages
            tables.apply(torch.from_numpy(padded), torch.from_numpy(pages))
        assert (tables.table.numpy()[:NUM_SLOTS] == device[:NUM_SLOTS]).all()


@pytest.mark.parametrize("context", [16, 17])
def test_a_row_that_goes_on_sends_a_page_only_where_it_needs_a_new_one(context):
    tables = PageTables(2, 4, 16, torch.device("cpu"))
    pages = np.array([[7, 9, 0, 0]], np.int32)
    assert len(tables.changes(batch_of([1], [16], pages)).places) == 1
    changes = tables.changes(batch_of([1], [context], pages))
    assert changes.pages.tolist() == [9] * (context == 17)
    assert changes.places.tolist() == [4 + 1] * (context == 17)
    assert changes.unused == 2 * 4


def test_what_stands_beyond_a_rows_own_pages_is_not_sent():
    tables = PageTables(2, 4, 16, torch.device("cpu"))
    table = np.array([[1, 5, 6, 7], [2, 3, 4, 8]], np.int32)
    changes = tables.changes(batch_of([0, 1], [16, 64], table))
    assert sorted(zip(changes.places.tolist(), changes.pages.tolist(), strict=True)) == [
        (0, 1), (4, 2), (5, 3), (6, 4), (7, 8),
    ]  # fmt: skip
