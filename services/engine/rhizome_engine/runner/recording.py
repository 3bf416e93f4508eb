"""Computing the same step again without launching its kernels one by one.

A recording is made of a function that reads and writes tensors at fixed addresses. `replay` then does what a
call would do: the inputs are what the static tensors hold by then, the result is in `output`.

    CudaRecording   a CUDA graph: one launch, whatever the step has kernels
    Rerun           calls the function again: the same interface where there is no CUDA, and the oracle
"""

from __future__ import annotations

import gc
from collections.abc import Callable
from typing import Protocol

import torch
from torch import Tensor

_WARM_UPS = 2
"""Calls before a recording: what is loaded, compiled or tuned at the first use cannot be recorded."""

Compute = Callable[[], Tensor]


class RecordingError(Exception):
    """A step could not be recorded; it can still be computed."""


class Recording(Protocol):
    """A step that was recorded.

    Attributes:
        output: what the function returned; the next `replay` writes it anew.
    """

    output: Tensor

    def replay(self) -> None:
        """Compute it; on a GPU, in the current stream and without waiting."""
        ...


class Recorder(Protocol):
    """Makes recordings.

    Attributes:
        name: for logs.
    """

    name: str

    def record(self, compute: Compute) -> Recording:
        """Call a function several times and record it.

        Args:
            compute: launches kernels whose grids and addresses are the same each time; reads nothing back.

        Raises:
            RecordingError: it cannot be recorded, or there is no memory for it.
        """
        ...


class Rerun:
    """See `Recording`."""

    def __init__(self, compute: Compute) -> None:
        self._compute = compute
        self.output = compute().clone()

    def replay(self) -> None:
        """Call the function."""
        self.output.copy_(self._compute())


class RerunRecorder:
    """See `Recorder`."""

    name = "reruns"

    def record(self, compute: Compute) -> Rerun:
        """Call the function once.

        Raises:
            RecordingError: it failed.
        """
        try:
            return Rerun(compute)
        except Exception as error:
            raise RecordingError(str(error)) from error


class CudaRecording:
    """See `Recording`."""

    def __init__(self, graph: torch.cuda.CUDAGraph, output: Tensor) -> None:
        self._graph = graph
        self.output = output

    def replay(self) -> None:
        """Launch the graph."""
        self._graph.replay()


class CudaRecorder:
    """See `Recorder`.

    All graphs take their memory from one pool, each what the ones before have released; so the largest should
    be recorded first, and only one may run at a time, which one stream sees to. An `output` is held by its
    recording, and no other graph writes there.

    Args:
        device: a CUDA device.
    """

    name = "CUDA graphs"

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._stream = torch.cuda.Stream(device)  # type: ignore[no-untyped-call]
        self._pool = torch.cuda.graph_pool_handle()

    def record(self, compute: Compute) -> CudaRecording:
        """Record on a stream of its own, after what the current one has queued.

        The collector stands still meanwhile: what it might free is none of the recording's business. Errors
        are looked for in this thread only, since others may call CUDA for their own ends.

        Raises:
            RecordingError: as for `Recorder.record`.
        """
        current = torch.cuda.current_stream(self._device)
        graph = torch.cuda.CUDAGraph()
        collects = gc.isenabled()
        gc.disable()
        try:
            self._stream.wait_stream(current)
            with torch.cuda.stream(self._stream):
                for _ in range(_WARM_UPS):
                    compute()
                torch.cuda.synchronize(self._device)
                graph.capture_begin(pool=self._pool, capture_error_mode="thread_local")
                try:
                    output = compute()
                finally:
                    graph.capture_end()
            current.wait_stream(self._stream)
        except Exception as error:  # of torch, of Triton's compiler, of the driver: the step goes on without
            raise RecordingError(str(error)) from error
        finally:
            if collects:
                gc.enable()
        return CudaRecording(graph, output)
