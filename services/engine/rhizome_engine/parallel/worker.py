"""The process of a rank other than 0: it does what rank 0 does, when rank 0 says so, and answers nothing.

It ends with rank 0, whatever ends that: the channel closes; where it waits for something else, the system
kills it, or it notices that its parent has changed.
"""

from __future__ import annotations

import contextlib
import ctypes
import json
import logging
import os
import signal
import socket
import threading
import time

import torch

from rhizome_engine.checkpoint.errors import CheckpointError
from rhizome_engine.core.runner_protocol import LaunchedStep
from rhizome_engine.parallel.channel import Channel, Frame
from rhizome_engine.parallel.frames import Kind, read_batch, read_masks, text_frame
from rhizome_engine.parallel.group import RankGroup, join, leave
from rhizome_engine.parallel.progress import Progress
from rhizome_engine.parallel.rank_process import RankOrders
from rhizome_engine.runner import ModelRunner
from rhizome_engine.settings import EXIT_CANNOT_SERVE, EXIT_FAILED

_log = logging.getLogger(__name__)

_PR_SET_PDEATHSIG = 1
_PARENT_POLL_S = 0.5


def run_worker(orders: RankOrders) -> int:
    """Serve rank 0 until it says so or is gone; the exit status."""
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1, signal.SIGUSR2):
        signal.signal(number, signal.SIG_IGN)  # rank 0 hears them as well and decides
    if orders.dies_with_parent:
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
    threading.Thread(target=_follow_parent, args=(orders.parent,), daemon=True).start()
    channel = Channel(socket.socket(fileno=orders.channel))
    worker = Worker(channel, Progress(orders.progress, orders.size), orders.rank)
    try:
        channel.send(text_frame(Kind.HELLO))
        device = torch.device(orders.device)
        path = f"/proc/self/fd/{orders.store}"
        worker.serve(join(path, orders.rank, orders.size, device, orders.timeout_s))
        leave()
    except Exception as error:
        if os.getppid() != orders.parent:  # what failed was to reach it
            return EXIT_FAILED
        refused = worker.is_loading and isinstance(error, (ValueError, CheckpointError))
        _log.error("rank %d failed: %s", orders.rank, error, exc_info=None if refused else error)
        status = EXIT_CANNOT_SERVE if refused else EXIT_FAILED
        with contextlib.suppress(OSError):
            channel.send(text_frame(Kind.ERROR, f"{type(error).__name__}: {error}", status))
        return status
    return 0


class Worker:
    """Does what arrives.

    Args:
        channel: from rank 0.
        progress: counts what was done.
        rank: of this process.

    Attributes:
        is_loading: a model is being loaded.
    """

    def __init__(self, channel: Channel, progress: Progress, rank: int) -> None:
        self._channel = channel
        self._progress = progress
        self._rank = rank
        self._runner: ModelRunner | None = None
        self._steps: dict[int, LaunchedStep] = {}
        self.is_loading = False

    def serve(self, group: RankGroup) -> None:
        """Do what arrives until rank 0 says that it was all, or is gone."""
        while (frame := self._channel.receive()) is not None and frame.head.kind is not Kind.STOP:
            if frame.head.kind is Kind.LOAD:
                self._load(json.loads(frame.text), group)
            elif frame.head.kind is Kind.UNLOAD:
                self._runner = None
                self._steps.clear()
            else:
                self._compute(frame)
                self._done()

    def _load(self, settings: dict[str, object], group: RankGroup) -> None:
        self.is_loading = True
        self._runner = ModelRunner(**settings, group=group)  # type: ignore[arg-type] # rank 0 checked them
        self._runner.model.layer_done = self._done
        self.is_loading = False
        self._channel.send(text_frame(Kind.READY))

    def _compute(self, frame: Frame) -> None:
        head, runner = frame.head, self._runner
        assert runner is not None, "loaded"
        match head.kind:
            case Kind.LAUNCH:
                self._steps[head.step] = runner.launch(read_batch(head, frame.body))
            case Kind.SAMPLE:
                self._steps[head.step].sample(read_masks(head, frame.body))
            case Kind.RESULT:
                self._steps.pop(head.step).result()
            case Kind.IDLE:
                runner.use_idle_time()
            case _:
                raise ValueError(f"rank 0 sent {head.kind.name}")

    def _done(self) -> None:
        self._progress.advance(self._rank)


def _follow_parent(parent: int) -> None:
    """End with rank 0, also while the main thread waits for something in native code."""
    while os.getppid() == parent:
        time.sleep(_PARENT_POLL_S)
    os._exit(EXIT_FAILED)
