"""Kernels compiled in threads, before anything launches them.

Triton compiles a kernel when it is first launched, and the launches of a step come one after the other. Here
a step is walked through without launching anything: each launch becomes a request to compile, under the very
key that the real launch will look up. A sixth to a quarter of a compilation is Python and holds its lock, the
rest does not; so threads do, and weights are read meanwhile.
"""

from __future__ import annotations

import logging
import os
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from typing import Any

import torch
import torch.nn.functional as F
import triton
from torch import Tensor
from torch.overrides import TorchFunctionMode
from triton.runtime._async_compile import AsyncCompileMode
from triton.runtime.jit import JITFunction

from rhizome_engine.kernels.triton.runtime import this_thread

logger = logging.getLogger(__name__)

_MOST_THREADS = 8
_PATIENCE_S = 60.0
"""A start waits so long, and then goes on without: what is missing is compiled where it is launched."""
_patching = threading.Lock()


class CompileAhead:
    """Walks through steps and compiles, in threads of its own, from when it is made.

    Args:
        walk: launches kernels, with tensors on "meta".
        device: that they are compiled for.
        threads: that compile; None for one per processor, up to eight.

    Attributes:
        num_kernels: that were compiled or found on disk, so far.
    """

    def __init__(self, walk: Callable[[], None], device: torch.device, threads: int | None = None) -> None:
        self.num_kernels = 0
        self._walk = walk
        self._device = device
        self._threads = threads or max(1, min(_MOST_THREADS, len(os.sched_getaffinity(0))))
        self._thread = threading.Thread(target=self._run, name="compile-ahead", daemon=True)
        self._thread.start()

    def wait(self) -> None:
        """Wait until all is compiled. An error was logged, and costs time only."""
        self._thread.join(_PATIENCE_S)
        if self._thread.is_alive():
            logger.warning("kernels are still being compiled after %.0f s; going on", _PATIENCE_S)

    def _run(self) -> None:
        started = time.perf_counter()
        try:
            with ThreadPoolExecutor(self._threads, "compile-ahead", self._set_device) as pool:
                self._compile(pool)
        except Exception as error:  # whatever it is, launches compile what they find missing
            logger.info("not all kernels were compiled ahead: %s: %s", type(error).__name__, error)
        took = time.perf_counter() - started
        logger.info("%d kernels compiled, or found on disk, in %.1f s", self.num_kernels, took)

    def _compile(self, pool: ThreadPoolExecutor) -> None:
        self._set_device()
        mode = AsyncCompileMode(pool, ignore_errors=True)
        try:
            with mode, requests_only():
                self._walk()
        finally:
            kernels = [future.kernel for future in mode.future_kernels.values() if future.kernel is not None]
            self.num_kernels = len(kernels)
            list(pool.map(_make_launcher, kernels))

    def _set_device(self) -> None:
        """Triton compiles for the thread's device."""
        if self._device.type == "cuda":
            torch.cuda.set_device(self._device)


def _in_place(target: Tensor, *_: Any, **__: Any) -> Tensor:
    return target


def _product(x: Tensor, weight: Tensor, *_: Any, **__: Any) -> Tensor:
    return torch.empty(len(x), len(weight), dtype=x.dtype, device=x.device)


def _product_of_bytes(q: Tensor, columns: Tensor, *_: Any, out_dtype: torch.dtype = torch.int32) -> Tensor:
    return torch.empty(len(q), columns.shape[1], dtype=out_dtype, device=q.device)


_SHAPES: dict[Any, Callable[..., Tensor]] = {
    F.linear: _product,
    Tensor.add_: _in_place,
    Tensor.addmm_: _in_place,
    Tensor.mul_: _in_place,
    Tensor.scatter_: _in_place,
    torch._int_mm: _product_of_bytes,
    torch._scaled_mm: _product_of_bytes,
    torch.empty_like: lambda x: torch.empty(x.shape, dtype=x.dtype, device=x.device),
}
"""What these return on "meta". PyTorch finds that out in Python and imports its compiler: two seconds."""


class _QuickShapes(TorchFunctionMode):
    """Answers from `_SHAPES`, in this thread."""

    def __torch_function__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        """See `TorchFunctionMode`."""
        return _SHAPES.get(func, func)(*args, **(kwargs or {}))


@contextmanager
def requests_only() -> Iterator[None]:
    """Let this thread's launches compile and never launch; those of other threads are what they were.

    A kernel that is compiled already must not be launched either: tensors on "meta" are null pointers.
    """
    walker, launch = threading.get_ident(), JITFunction.run

    def run(self: Any, *args: Any, grid: Any, warmup: bool, **kwargs: Any) -> Any:
        return launch(self, *args, grid=grid, warmup=warmup or threading.get_ident() == walker, **kwargs)

    with _patching:
        JITFunction.run = run
        this_thread.only_asks = True
        try:
            with _QuickShapes():
                yield
        finally:
            this_thread.only_asks = False
            JITFunction.run = launch


def _make_launcher(kernel: Any) -> None:
    """Compile the C function that launches a kernel; it is kept on disk, where the launch finds it."""
    triton.runtime.driver.active.launcher_cls(kernel.src, kernel.metadata)
