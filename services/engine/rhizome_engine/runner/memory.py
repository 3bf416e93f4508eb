"""How many KV pages fit, from memory that is measured; refused with the arithmetic when they do not."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import psutil
import torch

_CGROUP = Path("/sys/fs/cgroup")
_CUDA_SHARE = 0.9
_CPU_SHARE = 0.25


class KVBudgetError(ValueError):
    """The model or its KV pool does not fit; the text holds the arithmetic."""


@dataclass(frozen=True, slots=True)
class MemoryNeeds:
    """Bytes that are taken before the KV pool gets any, and the pool's unit.

    Attributes:
        weights: all parameters.
        workspace: activations and logits of the largest step, estimated from above.
        page: one page's keys and values in all layers.
    """

    weights: int
    workspace: int
    page: int


def plan_num_pages(
    needs: MemoryNeeds,
    available: int,
    device: torch.device,
    *,
    page_size: int,
    num_pages: int | None,
    kv_cache_bytes: int | None,
    useful_pages: int,
) -> int:
    """Decide the size of the KV pool before anything is allocated.

    Args:
        needs: what else must fit.
        available: free bytes on the device, measured.
        device: a CPU shares its memory with others, so that by default less is taken.
        page_size: tokens per page.
        num_pages: exactly so many, or None.
        kv_cache_bytes: as many as fit into this, or None.
        useful_pages: where neither is given, more than this many are never taken.

    Raises:
        KVBudgetError: it does not fit.
        ValueError: both sizes were given, or a size is not positive.
    """
    if num_pages is not None and kv_cache_bytes is not None:
        raise ValueError("give num_pages or kv_cache_bytes, not both")
    left = available - needs.weights - needs.workspace
    share = _CUDA_SHARE if device.type == "cuda" else _CPU_SHARE
    if num_pages is not None:
        pages = num_pages
    elif kv_cache_bytes is not None:
        pages = kv_cache_bytes // needs.page
    else:
        pages = min(int(max(left, 0) * share) // needs.page, useful_pages)
    wanted = pages * needs.page
    if pages < 1 or wanted > left:
        raise KVBudgetError(
            f"the KV pool does not fit on {device}: {_size(available)} available - {_size(needs.weights)} "
            f"weights - {_size(needs.workspace)} workspace = {_size(left)} left; wanted {pages} pages x "
            f"{page_size} tokens x {_size(needs.page // page_size)} per token = {_size(wanted)}. "
            "Lower num_pages, give kv_cache_bytes room for at least one page, or free memory"
        )
    return pages


def available_bytes(device: torch.device) -> int:
    """Measure free memory: of the GPU, or of the machine and its container, whichever has less."""
    if device.type == "cuda":
        free, _ = torch.cuda.mem_get_info(device)
        return int(free)
    available = int(psutil.virtual_memory().available)
    limit = _read_number(_CGROUP / "memory.max")
    used = _read_number(_CGROUP / "memory.current")
    if limit is None or used is None:
        return available
    return min(available, limit - used + _reclaimable())


def _reclaimable() -> int:
    """File pages that count as used in a container, but are given up under pressure."""
    try:
        lines = (_CGROUP / "memory.stat").read_text(encoding="ascii").splitlines()
    except OSError:
        return 0
    return sum(int(line.split()[1]) for line in lines if line.startswith("inactive_file "))


def _read_number(path: Path) -> int | None:
    """Return the number in a control file, None where there is none ("max", or no such file)."""
    try:
        return int(path.read_text(encoding="ascii"))
    except (OSError, ValueError):
        return None


def _size(num_bytes: int) -> str:
    """Write bytes for people."""
    for unit, power in (("GiB", 30), ("MiB", 20), ("KiB", 10)):
        if abs(num_bytes) >= 2**power:
            return f"{num_bytes / 2**power:.2f} {unit}"
    return f"{num_bytes} B"
