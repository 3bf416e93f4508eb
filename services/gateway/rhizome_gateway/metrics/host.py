"""The machine that the gateway runs on: processors, memory and, where there are any, NVIDIA's GPUs."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable
from typing import Any

import psutil
import pynvml  # type: ignore[import-untyped]

_log = logging.getLogger(__name__)

_MIB = 1024 * 1024


class Host:
    """Reads what the operating system knows; costs well below a millisecond."""

    def __init__(self) -> None:
        psutil.cpu_percent(interval=None)  # later calls tell what was used since the one before

    def cpu(self) -> dict[str, Any]:
        """Use of all processors since the last call."""
        return {
            "utilization_percent": psutil.cpu_percent(interval=None),
            "core_count": psutil.cpu_count() or 1,
        }

    def memory(self) -> dict[str, Any]:
        """Memory in MiB; what caches hold counts as available."""
        memory = psutil.virtual_memory()
        return {
            "used_mb": (memory.total - memory.available) // _MIB,
            "total_mb": memory.total // _MIB,
            "available_mb": memory.available // _MIB,
            "utilization_percent": memory.percent,
        }


class Gpus:
    """Reads NVIDIA's management library on a thread, because a busy driver answers late.

    Without the library, a driver or a device there are no GPUs; that is said once in the log.
    """

    def __init__(self) -> None:
        self._count: int | None = None
        self._failing = False

    async def read(self) -> list[dict[str, Any]]:
        """Each GPU's figures; those that a GPU does not report are None."""
        if self._count == 0:
            return []
        return await asyncio.to_thread(self._read)

    def _read(self) -> list[dict[str, Any]]:
        try:
            if self._count is None:
                self._count = _initialise()
            gpus = [_figures(index) for index in range(self._count)]
        except pynvml.NVMLError as error:
            if not self._failing:
                _log.warning("no figures of the GPUs: %s", error)
            self._failing = True
            return []
        self._failing = False
        return gpus


def _initialise() -> int:
    """How many there are; whoever starts without a driver never gets one."""
    try:
        pynvml.nvmlInit()
    except pynvml.NVMLError as error:
        _log.debug("no GPUs: %s", error)
        return 0
    return int(pynvml.nvmlDeviceGetCount())


def _figures(index: int) -> dict[str, Any]:
    device = pynvml.nvmlDeviceGetHandleByIndex(index)
    memory = _reported(lambda: pynvml.nvmlDeviceGetMemoryInfo(device))
    use = _reported(lambda: pynvml.nvmlDeviceGetUtilizationRates(device))
    heat = _reported(lambda: pynvml.nvmlDeviceGetTemperature(device, pynvml.NVML_TEMPERATURE_GPU))
    return {
        "device_id": index,
        "name": _reported(lambda: pynvml.nvmlDeviceGetName(device)),
        "utilization_percent": None if use is None else float(use.gpu),
        "memory_used_mb": None if memory is None else memory.used // _MIB,
        "memory_total_mb": None if memory is None else memory.total // _MIB,
        "temperature_celsius": None if heat is None else float(heat),
    }


def _reported(ask: Callable[[], Any]) -> Any:
    """What a GPU reports; parts of GPUs and old ones do not report everything."""
    try:
        return ask()
    except pynvml.NVMLError_NotSupported:
        return None
