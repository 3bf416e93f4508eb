"""The core in a thread of its own, for callers in event loops.

    event loop A ── start, end ──▶ ┌ inbox ┐          ┌──▶ wake the callers of loop A
    event loop B ── start, end ──▶ └───────┘─▶ steps ─┴──▶ wake the callers of loop B

Callers never touch the core: what they want is done between two steps. A loop is woken once per step, however
many of its callers have news.
"""

from __future__ import annotations

import asyncio
import logging
import threading
from collections import defaultdict, deque
from collections.abc import Callable
from concurrent.futures import Future
from contextlib import suppress
from typing import Any, TypeVar

import grpc

from rhizome_engine.core.engine_core import EngineCore
from rhizome_engine.llm.job import Job
from rhizome_transport.errors import EngineError

_log = logging.getLogger(__name__)

_GRAMMAR_POLL_S = 0.001
_IDLE_S = 1.0
"""How often an idle engine looks at what is due by the clock."""

Result = TypeVar("Result")


class Waiter:
    """A job and who waits for it. Made inside the running loop.

    Attributes:
        job: what is waited for.
        loop: where.
        news: set when the job has deltas or is done.
    """

    def __init__(self, job: Job[Any]) -> None:
        self.job = job
        self.loop = asyncio.get_running_loop()
        self.news = asyncio.Event()


class EngineThread:
    """Steps a core while there is work. It ends with `close`, or with the process.

    Args:
        core: belongs to this thread from now on.
    """

    def __init__(self, core: EngineCore) -> None:
        self._core = core
        self._inbox: deque[Callable[[], None]] = deque()
        self._wake = threading.Event()
        self._waiters: dict[Job[Any], Waiter] = {}
        self._closing = False
        self._has_idle_work = False
        self._failure: EngineError | None = None
        self._lock = threading.RLock()  # a job may be given up by the garbage collector, anywhere
        self._thread = threading.Thread(target=self._run, name="rhizome-engine", daemon=True)
        self._thread.start()

    def start(self, waiter: Waiter) -> None:
        """Queue a job.

        Raises:
            EngineError: the engine was closed, or failed.
        """

        def start() -> None:
            self._waiters[waiter.job] = waiter
            waiter.job.start(self._core)
            if waiter.job.done:
                self._tell([waiter.job])

        self._post(start)

    def give_up(self, waiter: Waiter) -> None:
        """End a job whose caller does not wait any more; its pages are free after the current step."""

        def give_up() -> None:
            if self._waiters.pop(waiter.job, None) is not None:
                waiter.job.end(self._core)

        with suppress(EngineError):  # closed: nothing is open any more
            self._post(give_up)

    def ask(self, question: Callable[[EngineCore], Result]) -> Future[Result]:
        """Let a function see the core between two steps.

        Raises:
            EngineError: the engine was closed, or failed.
        """
        future: Future[Result] = Future()

        def answer() -> None:
            try:
                future.set_result(question(self._core))
            except Exception as error:
                future.set_exception(error)

        self._post(answer)
        return future

    def close(self) -> None:
        """End what is open and the thread; waits for the current step. Closing twice does nothing."""
        self._closing = True
        self._wake.set()
        self._thread.join()

    def _post(self, action: Callable[[], None]) -> None:
        with self._lock:
            if self._failure is not None:
                raise self._failure
            self._inbox.append(action)
        self._wake.set()

    def _run(self) -> None:
        failure = EngineError(grpc.StatusCode.CANCELLED, "the engine was closed")
        try:
            while not self._closing:
                self._wait()
                while self._inbox:
                    self._inbox.popleft()()
                if self._core.has_work:
                    self._step()
                else:
                    self._core.tick()
                    self._has_idle_work = self._core.use_idle_time()
        except Exception as error:
            _log.exception("the engine failed")
            failure = EngineError(grpc.StatusCode.INTERNAL, f"the engine failed: {error}")
        with self._lock:
            self._failure = failure
        while self._inbox:  # accepted before: these jobs and questions are not forgotten
            self._inbox.popleft()()
        for job in list(self._waiters):
            job.end(self._core, failure)
        self._tell(list(self._waiters))

    def _wait(self) -> None:
        """Sleep until somebody wants something or there is something to compute."""
        if self._core.has_work:
            if not self._core.is_runnable:
                self._wake.wait(_GRAMMAR_POLL_S)
        elif not self._inbox and not self._has_idle_work:
            self._wake.wait(_IDLE_S)
        self._wake.clear()

    def _step(self) -> None:
        news: dict[Job[Any], None] = {}
        for event in self._core.step():
            job: Job[Any] = event.request.peer  # type: ignore[assignment] # given by this class
            try:
                has_news = job.take(event, self._core)
            except Exception as error:  # one caller's text is no other caller's trouble
                job.end(self._core, error)
                has_news = True
            if has_news:
                news[job] = None
        self._tell(list(news))

    def _tell(self, jobs: list[Job[Any]]) -> None:
        """Wake those who wait for jobs that have news."""
        waiters: defaultdict[asyncio.AbstractEventLoop, list[Waiter]] = defaultdict(list)
        for job in jobs:
            waiter = self._waiters.pop(job, None) if job.done else self._waiters.get(job)
            if waiter is not None:
                waiters[waiter.loop].append(waiter)
        for loop, theirs in waiters.items():
            try:
                loop.call_soon_threadsafe(_wake_all, theirs)
            except RuntimeError:  # the loop is closed: nobody waits there
                for waiter in theirs:
                    self._waiters.pop(waiter.job, None)
                    waiter.job.end(self._core)


def _wake_all(waiters: list[Waiter]) -> None:
    for waiter in waiters:
        waiter.news.set()
