"""What becomes of a step that could not be computed: its requests end, or the process does.

| what failed | requests of the step | the core |
|---|---|---|
| no memory for it | RESOURCE_EXHAUSTED / OUT_OF_MEMORY, so that a proxy tries another engine | goes on |
| anything else | INTERNAL | goes on |
| one of these, several times in a row | lost with the process | ends; the next one begins anew |
| the device computes nothing more | lost with the process | ends at once, with a status of its own |
| on one of several ranks, whatever it is | the same | the same: the ranks no longer agree |

Where the step was to copy pages between the tiers, nobody knows how far it came: the host tier forgets all
that it has, and requests that wait for something from there end with the others.

Errors are told apart by type names and texts: PyTorch has no type for most of them, and whoever imports this
need not load it.
"""

from __future__ import annotations

import logging
import re
from collections.abc import Callable, Sequence

import grpc

from rhizome_engine.core.events import FailedEvent
from rhizome_engine.core.open_requests import OpenRequests
from rhizome_engine.parallel.errors import RankLostError
from rhizome_engine.scheduler.request import Request, RequestState
from rhizome_engine.scheduler.step_plan import StepPlan

_log = logging.getLogger(__name__)

_MAX_IN_A_ROW = 3
_FAILED = "the engine failed while computing this request; try again, and see the engine's log"
_NO_MEMORY = (
    "the engine had no memory left to compute this request; try again later, or with a shorter prompt"
)
_RETRY_AFTER_S = 1.0
_NO_MEMORY_TYPES = {"MemoryError", "OutOfMemoryError"}
_NO_MEMORY_TEXTS = re.compile(r"can't allocate memory|not enough memory|out of memory", re.IGNORECASE)
_DEVICE_TYPES = {"AcceleratorError"}
# After one of these every later call of the process fails in the same way, whatever it is about.
_DEVICE_TEXTS = re.compile(
    r"CUDA error|HIP error|CUDA driver error|CUBLAS_STATUS_|CUDNN_STATUS_|NCCL error|device-side assert"
    r"|illegal memory access|unspecified launch failure"
)


class DeviceLostError(Exception):
    """The device computes nothing more for this process, which should be started anew."""


class FailedSteps:
    """Ends the requests of steps that failed.

    Args:
        open_requests: where they are.
        distrust_copies: says who else relies on the copies of pages that a step was to do.
    """

    def __init__(
        self, open_requests: OpenRequests, distrust_copies: Callable[[], Sequence[Request]] = tuple
    ) -> None:
        self._open = open_requests
        self._distrust_copies = distrust_copies
        self._in_a_row = 0

    def went_well(self) -> None:
        """A step was computed."""
        self._in_a_row = 0

    def fail(self, plan: StepPlan, error: Exception) -> list[FailedEvent]:
        """End the requests of a step that the model runner could not compute.

        Raises:
            DeviceLostError: the device is gone; whatever is open is lost.
            RankLostError: the same, of one of several ranks.
            Exception: the error, when it was one too many in a row.
        """
        if isinstance(error, RankLostError):
            raise error
        if is_device_lost(error):
            raise DeviceLostError(f"the device is lost: {error}") from error
        others = self._distrust_copies() if plan.page_copies else ()
        concerned = dict.fromkeys([*plan.requests, *others])
        requests = [request for request in concerned if request.state is not RequestState.FINISHED]
        if not requests:  # they failed with the step before
            return []
        self._in_a_row += 1
        if self._in_a_row >= _MAX_IN_A_ROW:
            raise error
        _log.error("the model runner failed; the %d requests of the step end", len(requests), exc_info=error)
        if is_out_of_memory(error):
            code, reason = grpc.StatusCode.RESOURCE_EXHAUSTED, "OUT_OF_MEMORY"
            return [
                self._open.fail(one, code, _NO_MEMORY, reason=reason, retry_after_s=_RETRY_AFTER_S)
                for one in requests
            ]
        return [self._open.fail(one, grpc.StatusCode.INTERNAL, _FAILED) for one in requests]


def is_out_of_memory(error: BaseException) -> bool:
    """Whether an allocation failed, on the device or on the host; smaller steps may go well."""
    return _has_type(error, _NO_MEMORY_TYPES) or (
        isinstance(error, RuntimeError) and _NO_MEMORY_TEXTS.search(str(error)) is not None
    )


def is_device_lost(error: BaseException) -> bool:
    """Whether the device's context is broken for good."""
    if is_out_of_memory(error):  # CUDA says "CUDA error: out of memory" too
        return False
    return _has_type(error, _DEVICE_TYPES) or (
        isinstance(error, RuntimeError) and _DEVICE_TEXTS.search(str(error)) is not None
    )


def _has_type(error: BaseException, names: set[str]) -> bool:
    return any(kind.__name__ in names for kind in type(error).__mro__)
