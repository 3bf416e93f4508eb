"""A few threads for work that may take too long: each job has a wall-clock limit.

Native code cannot be interrupted. A job that overruns its limit loses its place in the pool, its future
fails, and its thread goes on unseen until the job ends; so many such threads may exist, and no more.

    waiting ──start──> running ──ends in time──> result
       │                  └──limit──> overdue ──ends──> forgotten
       └──waited too long──> failed
"""

from __future__ import annotations

import threading
import time
from collections import deque
from collections.abc import Callable
from concurrent.futures import Future
from dataclasses import dataclass, field
from typing import Any, TypeVar

from rhizome_grammar.errors import CompilerBusyError, GrammarError

T = TypeVar("T")

STACK_BYTES = 256 * 1024 * 1024
"""Address space of a job's stack. Memory is used only as deep as the job goes."""

_stack_size_lock = threading.Lock()


@dataclass(slots=True, eq=False)
class _Job:
    run: Callable[[], Any]
    deadline: float
    future: Future[Any] = field(default_factory=Future)


class TimedPool:
    """Runs jobs in daemon threads of their own, so many at a time.

    Args:
        workers: jobs that run at once, not counting overdue ones.
        limit_s: wall-clock seconds that a job may run.
        max_overdue: overdue jobs beside which others still start.
        wait_s: wall-clock seconds that a job waits for its start before it fails.
    """

    def __init__(
        self, workers: int, limit_s: float, *, max_overdue: int | None = None, wait_s: float = 30.0
    ) -> None:
        self._workers = workers
        self._limit_s = limit_s
        self._wait_s = wait_s
        self._max_overdue = 2 * workers if max_overdue is None else max_overdue
        self._changed = threading.Condition()
        self._waiting: deque[_Job] = deque()
        self._running: set[_Job] = set()
        self._num_overdue = 0
        self._watching = False

    @property
    def num_overdue(self) -> int:
        """Jobs that overran their limit and still run."""
        return self._num_overdue

    def submit(self, run: Callable[[], T]) -> Future[T]:
        """Run a job as soon as there is room.

        The future cannot be cancelled, since several may wait for it. It fails with what `run` raises, with
        GrammarError at the limit, and with CompilerBusyError if the job could not start in time.
        """
        job = _Job(run, time.monotonic() + self._wait_s)
        job.future.set_running_or_notify_cancel()
        with self._changed:
            self._waiting.append(job)
            self._start_waiting()
            if self._watching:
                self._changed.notify()
            else:
                self._watching = True
                threading.Thread(target=self._watch, name="grammar-watch", daemon=True).start()
        return job.future

    def _start_waiting(self) -> None:
        while self._waiting and len(self._running) < self._workers and self._num_overdue <= self._max_overdue:
            job = self._waiting.popleft()
            job.deadline = time.monotonic() + self._limit_s
            self._running.add(job)
            thread = threading.Thread(target=self._run, args=(job,), name="grammar-compile", daemon=True)
            # Grammars are walked recursively, and an overflow would end the process.
            with _stack_size_lock:
                before = threading.stack_size(STACK_BYTES)
                try:
                    thread.start()
                except RuntimeError as error:
                    self._running.remove(job)
                    job.future.set_exception(CompilerBusyError(f"no thread to compile the grammar: {error}"))
                finally:
                    threading.stack_size(before)

    def _run(self, job: _Job) -> None:
        result, error = None, None
        try:
            result = job.run()
        except BaseException as raised:  # whoever waits for the future gets it
            error = raised
        with self._changed:
            in_time = job in self._running
            if in_time:
                self._running.remove(job)
            else:
                self._num_overdue -= 1
            self._start_waiting()
            self._changed.notify()
        if not in_time:
            return
        if error is None:
            job.future.set_result(result)
        else:
            job.future.set_exception(error)

    def _watch(self) -> None:
        """Fail jobs whose time is up; ends when there are none left to watch."""
        while True:
            with self._changed:
                now = time.monotonic()
                overdue = [job for job in self._running if job.deadline <= now]
                late = [job for job in self._waiting if job.deadline <= now]
                self._running.difference_update(overdue)
                self._num_overdue += len(overdue)
                for job in late:
                    self._waiting.remove(job)
                self._start_waiting()
                if not overdue and not late:
                    if not self._running and not self._waiting:
                        self._watching = False
                        return
                    deadline = min(job.deadline for job in (*self._running, *self._waiting))
                    self._changed.wait(max(deadline - now, 0))
            for job in overdue:
                job.future.set_exception(
                    GrammarError(f"compiling the grammar took more than {self._limit_s:g} s; simplify it")
                )
            for job in late:
                job.future.set_exception(
                    CompilerBusyError(
                        f"the grammar waited {self._wait_s:g} s for others to be compiled; try again"
                    )
                )
