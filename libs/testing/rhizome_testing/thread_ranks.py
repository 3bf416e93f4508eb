"""Ranks of a model as threads of one process: fast, and whatever they hold can be looked at."""

from __future__ import annotations

import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

import torch
from torch import Tensor

from rhizome_engine.parallel.group import RankGroup

_PATIENCE_S = 60.0
Result = TypeVar("Result")


class ThreadGroup(RankGroup):
    """A rank that is a thread: the same operations through memory that all of them see."""

    def __init__(self, rank: int, size: int, board: list[Tensor], barrier: threading.Barrier) -> None:
        super().__init__(rank, size, torch.device("cpu"))
        self._board = board
        self._barrier = barrier

    def add_up(self, x: Tensor) -> None:
        """See `RankGroup`."""
        x.copy_(self.gather(x).sum(0))

    def gather(self, x: Tensor) -> Tensor:
        """See `RankGroup`."""
        self._board[self.rank] = x.clone()
        self._barrier.wait(_PATIENCE_S)
        together = torch.stack(self._board)
        self._barrier.wait(_PATIENCE_S)
        return together

    def copy_from_first(self, x: Tensor) -> None:
        """See `RankGroup`."""
        x.copy_(self.gather(x)[0])

    def least(self, number: int) -> int:
        """See `RankGroup`."""
        return int(self.gather(torch.tensor([number])).min())


def in_threads(size: int, work: Callable[[ThreadGroup], Result]) -> list[Result]:
    """Let each rank do something; what each returned."""
    board, barrier = [torch.empty(0)] * size, threading.Barrier(size)

    def run(rank: int) -> Result:
        try:
            return work(ThreadGroup(rank, size, board, barrier))
        except BaseException:
            barrier.abort()
            raise

    with ThreadPoolExecutor(size) as threads:
        futures = [threads.submit(run, rank) for rank in range(size)]
        errors = [future.exception() for future in futures]
        for error in errors:
            if error is not None and not isinstance(error, threading.BrokenBarrierError):
                raise error
        return [future.result() for future in futures]
