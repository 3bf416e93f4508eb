"""The other ranks, as rank 0 sees them: started, told every step, watched, and ended.

rank 0 ──────── starts ──────────▶ rank 1, 2, ...
       ───── what to compute ────▶                   sockets; results stay where they are computed
       ◀── ready, an error, gone ─
       ◀──── shared counters ─────                   do they get on?
"""

from __future__ import annotations

import logging
import os
import selectors
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress

import torch

from rhizome_engine.parallel import group as groups
from rhizome_engine.parallel.errors import RankLostError, RankRefusedError
from rhizome_engine.parallel.frames import FrameError, Kind, text_frame
from rhizome_engine.parallel.progress import Progress, anonymous_file
from rhizome_engine.parallel.rank_process import RankLogging, RankProcess
from rhizome_engine.settings import EXIT_CANNOT_SERVE

_log = logging.getLogger(__name__)

_POLL_S = 0.2
_GRACE_S = 1.0
"""What this process gets to end by itself, with a better message, once a rank is lost."""
_STOP_S = 3.0
_MEETING_S = 300.0
_FIRST_STEPS = 32
_FIRST_TIMES_LONGER = 10
"""The first steps compile kernels."""


class Ranks:
    """All ranks of one model; this process is rank 0. Linux only.

    Args:
        devices: of each rank, this one's first; at least 2.
        timeout_s: the ranks are stuck when no layer was computed for so long, while one should be.
        logging: of the other processes.
        on_lost: called in a thread of its own once a rank is lost, unless this process closes the ranks by
            itself within a second; for who ends the whole process. Otherwise calls raise, that is all.

    Attributes:
        devices: as given.
        timeout_s: as given.
        group: for the collective operations.

    Raises:
        RankLostError: one ended while it started.
        ValueError: this process belongs to other ranks already.
    """

    def __init__(
        self,
        devices: Sequence[str],
        *,
        timeout_s: float = 60.0,
        logging: RankLogging | None = None,
        on_lost: Callable[[Exception], None] | None = None,
    ) -> None:
        groups.check_free()
        self.devices = list(devices)
        self.timeout_s = timeout_s
        self._on_lost = on_lost
        self._changed = threading.Condition()
        self._said: dict[int, set[Kind]] = {}
        self._lost: Exception | None = None
        self._closing = False
        self._closed = threading.Event()
        self._joined = False
        self._busy = 0
        self._steps = 0
        # Without paths: nobody else can open them, and nothing is left whatever ends these processes. The
        # store stays open for good: PyTorch writes to it by its number when the last reference goes, maybe
        # long after `close`, and aborts the process where there is nothing.
        store, progress = anonymous_file("rhizome-ranks"), anonymous_file("rhizome-progress")
        self._progress = Progress(progress, len(self.devices))
        meeting_s = max(_MEETING_S, 4 * timeout_s)
        self._others = [
            RankProcess(rank, self.devices, progress, store, meeting_s, logging)
            for rank in range(1, len(self.devices))
        ]
        os.close(progress)
        self._thread = threading.Thread(target=self._watch, name="rank-watch", daemon=True)
        self._thread.start()
        try:
            self.wait_for(Kind.HELLO)
            device = torch.device(self.devices[0])
            path = f"/proc/self/fd/{store}"
            self.group = groups.join(path, 0, len(self.devices), device, meeting_s)
            self._joined = True
        except BaseException:
            self.close()
            raise

    def wait_for(self, kind: Kind) -> None:
        """Wait until every other rank has said something, once for each time that it is waited for.

        Raises:
            RankLostError: one is lost.
            RankRefusedError: one cannot serve.
        """
        with self._changed:
            self._changed.wait_for(
                lambda: self._lost or all(self._has_said(one, kind) for one in self._others)
            )
            self._raise_if_lost()
            for one in self._others:
                self._said[one.rank].discard(kind)

    def load(self, settings: Sequence[str]) -> None:
        """Let the other ranks load a model, while this one does; they are `READY` then.

        Args:
            settings: of each rank's runner, this one's first.

        Raises:
            RankLostError: a rank is lost.
        """
        for one in self._others:
            with self.call(b""):
                one.channel.send(text_frame(Kind.LOAD, settings[one.rank]))

    def unload(self) -> None:
        """Let the other ranks forget their model; another one may be loaded then."""
        with self.call(text_frame(Kind.UNLOAD)):
            pass

    @contextmanager
    def call(self, frame: bytes, *, step: bool = False) -> Iterator[None]:
        """Let the other ranks do what this one does inside.

        Args:
            frame: what the others are told.
            step: it is a new step.

        Raises:
            RankLostError: a rank is lost, or what is done here failed: the others wait for it in vain then.
        """
        with self._changed:
            self._raise_if_lost()
            self._busy += 1
            self._steps += step
        try:
            for one in self._others:
                one.channel.send(frame)
            yield
        except Exception as error:
            raise self.why(error) from error
        finally:
            self._busy -= 1
            self._progress.advance(0)

    def why(self, error: Exception) -> Exception:
        """Return what to raise for an error here: what is wrong with another rank, if that is why."""
        if isinstance(error, (RankLostError, RankRefusedError)):
            return error
        with self._changed:
            if self._changed.wait_for(lambda: self._lost is not None, _GRACE_S) and self._lost is not None:
                return self._lost
        return RankLostError(f"rank 0 failed in a step that the other ranks compute as well: {error}")

    def close(self) -> None:
        """End the other ranks and leave the group. Closing twice does nothing."""
        with self._changed:
            if self._closing:
                return
            self._closing = True
            lost = self._lost
        self._closed.set()
        for one in self._others:
            with suppress(OSError):
                one.channel.send(text_frame(Kind.STOP))
        if lost is not None and self._on_lost is not None and self.devices[0] != "cpu":
            self._on_lost(lost)  # to leave NCCL without the lost rank may take for ever
        if self._joined:
            if lost is not None:
                groups.abort()
            groups.leave()
        for one in self._others:
            one.end(_STOP_S if lost is None else 0.0)
            one.channel.close()
        if threading.current_thread() is not self._thread:
            self._thread.join()

    def _has_said(self, one: RankProcess, kind: Kind) -> bool:
        return kind in self._said.get(one.rank, ())

    def _raise_if_lost(self) -> None:
        if self._lost is not None:
            raise self._lost

    def _watch(self) -> None:
        """Hear what ranks say, notice when one is gone or all are stuck."""
        with selectors.DefaultSelector() as selector:
            for one in self._others:
                selector.register(one.channel, selectors.EVENT_READ, one)
            seen, still_s, looked = self._progress.look(), 0.0, time.monotonic()
            while self._lost is None and not self._closing:
                for key, _ in selector.select(_POLL_S):
                    self._hear(key.data)
                now, progress = time.monotonic(), self._progress.look()
                # Time in which this process did not run itself, asleep or frozen, is nobody's fault.
                passed_s, looked = min(now - looked, 2 * _POLL_S), now
                still_s = still_s + passed_s if self._busy and progress == seen else 0.0
                seen = progress
                limit_s = self.timeout_s * (_FIRST_TIMES_LONGER if self._steps <= _FIRST_STEPS else 1)
                if still_s > limit_s:
                    self._lose(RankLostError(f"the ranks got no further for {still_s:.0f} s; one is stuck"))
        if self._lost is not None:
            self._after_loss(self._lost)

    def _hear(self, one: RankProcess) -> None:
        try:
            frame = one.channel.receive()
        except (OSError, FrameError) as error:
            if not self._closing:
                self._lose(RankLostError(f"rank {one.rank} cannot be understood: {error}"))
            return
        if self._closing:
            return
        if frame is None:
            status = one.end(_GRACE_S)
            how = f"was killed by signal {-status}" if status < 0 else f"ended with status {status}"
            self._lose(RankLostError(f"rank {one.rank} {how}"))
        elif frame.head.kind is Kind.ERROR:
            refused = frame.head.step == EXIT_CANNOT_SERVE
            kind = RankRefusedError if refused else RankLostError
            self._lose(kind(f"rank {one.rank} on {self.devices[one.rank]} failed: {frame.text}"))
        else:
            with self._changed:
                self._said.setdefault(one.rank, set()).add(frame.head.kind)
                self._changed.notify_all()

    def _lose(self, error: Exception) -> None:
        with self._changed:
            if self._lost is None:
                self._lost = error
            self._changed.notify_all()

    def _after_loss(self, error: Exception) -> None:
        """End the other ranks, so that whoever waits for one of them in this process wakes up."""
        if self._closing:
            return
        _log.error("%s; its model ends on all ranks", error)
        for one in self._others:
            one.process.kill()
        if self._on_lost is None:
            if self._joined:
                groups.abort()
        elif not self._closed.wait(_GRACE_S):
            self._on_lost(error)
