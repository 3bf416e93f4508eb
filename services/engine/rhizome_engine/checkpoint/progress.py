"""Showing how far a load is: a bar on a terminal, now and then a log line elsewhere, nothing in a library."""

from __future__ import annotations

import logging
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from rhizome_engine.memory_size import format_bytes

logger = logging.getLogger(__name__)

LOG_INTERVAL_S = 5.0


class LoadProgress:
    """Counts what was read; any thread may report.

    Args:
        num_bytes: in all, as the files have them.
        num_tensors: in all.
        show: called after each change, by one thread at a time.
    """

    def __init__(self, num_bytes: int, num_tensors: int, show: Callable[[LoadProgress], None]) -> None:
        self.num_bytes = num_bytes
        self.num_tensors = num_tensors
        self.done_bytes = 0
        self.done_tensors = 0
        self._show = show
        self._lock = threading.Lock()

    def advance(self, num_bytes: int) -> None:
        """Count bytes that were read."""
        with self._lock:
            self.done_bytes += num_bytes
            self._show(self)

    def finish_tensor(self) -> None:
        """Count a tensor whose last bytes were read."""
        with self._lock:
            self.done_tensors += 1
            self._show(self)


@contextmanager
def show_progress(num_bytes: int, num_tensors: int, *, shown: bool) -> Iterator[LoadProgress]:
    """Show the progress of reading weights.

    Args:
        num_bytes: in all, as the files have them.
        num_tensors: in all.
        shown: False only counts.
    """
    if not shown:
        yield LoadProgress(num_bytes, num_tensors, lambda _: None)
    elif sys.stderr.isatty():
        with _bar(num_bytes, num_tensors) as show:
            yield LoadProgress(num_bytes, num_tensors, show)
    else:
        yield LoadProgress(num_bytes, num_tensors, log_lines())


@contextmanager
def _bar(num_bytes: int, num_tensors: int) -> Iterator[Callable[[LoadProgress], None]]:
    from rich.console import Console
    from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn, TimeRemainingColumn

    columns = (
        TextColumn("loading weights"),
        BarColumn(),
        DownloadColumn(binary_units=True),
        TextColumn("{task.fields[tensors]} of {task.fields[num_tensors]} tensors"),
        TimeRemainingColumn(),
    )
    with Progress(*columns, console=Console(stderr=True), transient=True) as bar:
        task = bar.add_task("", total=num_bytes, tensors=0, num_tensors=num_tensors)
        yield lambda load: bar.update(task, completed=load.done_bytes, tensors=load.done_tensors)


def log_lines(clock: Callable[[], float] = time.monotonic) -> Callable[[LoadProgress], None]:
    """Return what writes a log line every few seconds, the first one after as many.

    Args:
        clock: monotonic seconds.
    """
    told = clock()

    def show(load: LoadProgress) -> None:
        nonlocal told
        if clock() - told >= LOG_INTERVAL_S:
            told = clock()
            logger.info(
                "loading weights: %.0f %%, %s of %s, %d of %d tensors",
                100 * load.done_bytes / max(load.num_bytes, 1),
                format_bytes(load.done_bytes),
                format_bytes(load.num_bytes),
                load.done_tensors,
                load.num_tensors,
            )

    return show
