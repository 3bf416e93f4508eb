"""Where and how a section measures."""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

MODEL = Path(__file__).parents[2] / "models" / "demo"


@dataclass(frozen=True, slots=True)
class Bench:
    """One run of the program.

    Attributes:
        folder: private; for logs.
        rounds: how often noisy figures are measured, in turn with what they are compared with.
        trace: requests for `routing`.
        quick: shorter, for trying the program itself; its figures mean little.
    """

    folder: Path
    rounds: int
    trace: Path
    quick: bool

    def seconds(self, whole: float) -> float:
        """How long to measure."""
        return whole / 4 if self.quick else whole


def cpus() -> tuple[frozenset[int], frozenset[int]]:
    """One processor for what is measured, the others for everything else; where there is one, it is both."""
    found = sorted(_ALL)
    return (frozenset(found[-1:]), frozenset(found[:-1])) if len(found) > 1 else (frozenset(found),) * 2


@contextmanager
def measured() -> Iterator[None]:
    """Processes started in this block run on the processor of what is measured."""
    before = os.sched_getaffinity(0)
    os.sched_setaffinity(0, cpus()[0])
    try:
        yield
    finally:
        os.sched_setaffinity(0, before)


def stay_aside() -> None:
    """This process, and what it starts outside `measured`, leaves that processor alone."""
    os.sched_setaffinity(0, cpus()[1])


def progress(what: str) -> None:
    """Say what is done."""
    print(f"  {time.strftime('%H:%M:%S')} {what}", file=sys.stderr, flush=True)


_ALL = frozenset(os.sched_getaffinity(0))
