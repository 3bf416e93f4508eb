"""The device's table of tokens."""

from __future__ import annotations

import resource

import numpy as np
import torch

from rhizome_engine.batch import NO_TOKEN
from rhizome_engine.sampling.token_table import TokenTable

CPU = torch.device("cpu")


def test_loaded_and_stored_tokens_stand_at_their_positions():
    table = TokenTable(3, 8, CPU)
    table.load(1, np.array([5, 6, 7], np.int32))
    table.store(torch.tensor([1, 2]), torch.tensor([3, 0]), torch.tensor([9, 4]))
    assert table.tokens.tolist() == [[0] * 8, [5, 6, 7, 9, 0, 0, 0, 0], [4] + [0] * 7]


def test_no_token_is_stored_as_one_that_the_model_has():
    table = TokenTable(1, 2, CPU)
    table.load(0, np.array([5, 6], np.int32))
    table.store(torch.tensor([0]), torch.tensor([1]), torch.tensor([NO_TOKEN]))
    assert table.tokens.tolist() == [[5, 0]]


def test_late_tokens_come_from_the_slot_and_position_of_their_place():
    table = TokenTable(4, 10, CPU)
    table.store(torch.tensor([2, 0]), torch.tensor([7, 3]), torch.tensor([77, 33]))
    token_ids = torch.tensor([1, -5, 2, -5])
    positions = torch.tensor([0, 3, 9, 7])
    table.fill_late(token_ids, positions, np.array([1, 3]), np.array([0, 2]))
    assert token_ids.tolist() == [1, 33, 2, 77]


def test_padding_rows_store_nothing():
    table = TokenTable(2, 3, CPU)
    table.store(torch.tensor([-1, 1, -1]), torch.tensor([0, 2, 1]), torch.tensor([NO_TOKEN, 4, 8]))
    assert table.tokens.tolist() == [[0, 0, 0], [0, 0, 4]]


def test_late_tokens_of_a_recorded_step_need_no_kernel(monkeypatch):
    monkeypatch.delenv("TRITON_INTERPRET", raising=False)
    table = TokenTable(3, 10, CPU)
    table.store(torch.tensor([2, 0]), torch.tensor([7, 3]), torch.tensor([77, 33]))
    token_ids = torch.tensor([1, -5, 2, -5])
    table.fill_late_static(
        token_ids, torch.tensor([0, 3, 10**6, 7]), torch.tensor([-1, 0, -1, 2], dtype=torch.int32)
    )
    assert token_ids.tolist() == [1, 33, 2, 77]


def test_a_large_table_uses_no_memory_before_it_is_written():
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    table = TokenTable(1024, 131_072, CPU)  # 512 MiB
    table.load(1000, np.arange(1000, dtype=np.int32))
    assert table.tokens[1000, 999] == 999
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 128 * 1024
