"""How many KV pages fit, from memory that is measured; refused with the arithmetic when they do not."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import psutil
import torch

from rhizome_engine.memory_size import MemorySize, format_bytes

if TYPE_CHECKING:
    from rhizome_engine.parallel.group import RankGroup

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
        weights_name: how they are kept, for messages.
        workspace: context length → most bytes of the largest step beside weights and pool.
        recorded: context length → most bytes of recorded steps beside all that; 0 where none are.
        max_context: longest context of the model, in tokens.
        page: one page's keys and values in all layers.
        page_size: tokens per page.
        remedies: says what would need less, for messages.
    """

    weights: int
    weights_name: str
    workspace: Callable[[int], int]
    max_context: int
    page: int
    page_size: int
    remedies: Callable[[], Sequence[str]] = tuple
    recorded: Callable[[int], int] = lambda _: 0

    def workspace_of(self, num_pages: int) -> int:
        """Return what steps take beside a pool of so many pages, which no context can be longer than."""
        context = self._longest(num_pages)
        return self.workspace(context) + self.recorded(context)

    def recorded_of(self, num_pages: int) -> int:
        """Return how much of that is for recorded steps."""
        return self.recorded(self._longest(num_pages))

    def _longest(self, num_pages: int) -> int:
        return min(self.max_context, max(num_pages, 0) * self.page_size)


def plan_num_pages(
    needs: MemoryNeeds,
    available: int,
    device: torch.device,
    *,
    num_pages: int | None,
    kv_memory: MemorySize | None,
    useful_pages: int,
) -> int:
    """Decide the size of the KV pool before anything is allocated.

    Args:
        needs: what else must fit.
        available: free bytes on the device, measured.
        device: a CPU shares its memory with others, so that by default less is taken.
        num_pages: exactly so many, or None.
        kv_memory: as many as fit into this (a share is one of what is left beside weights and workspace), or
            None.
        useful_pages: where neither is given, more than this many are never taken.

    Raises:
        KVBudgetError: it does not fit.
        ValueError: both sizes were given.
    """
    if num_pages is not None and kv_memory is not None:
        raise ValueError("give num_pages or kv_memory, not both")
    beside_weights = available - needs.weights
    if num_pages is not None:
        pages = num_pages
    elif kv_memory is not None and kv_memory.num_bytes is not None:
        pages = kv_memory.num_bytes // needs.page
        if not pages:
            raise KVBudgetError(
                f"{format_bytes(kv_memory.num_bytes)} of KV memory is less than one page of "
                f"{needs.page_size} tokens, {format_bytes(needs.page)}; give at least that, "
                "or a smaller --page-size"
            )
    else:
        share = _CUDA_SHARE if device.type == "cuda" else _CPU_SHARE
        size = kv_memory or MemorySize(share=share)
        # The workspace grows with the longest context, which the pool bounds: first without, then with it.
        most = max(beside_weights, 0) // needs.page
        pages = size.of(beside_weights - needs.workspace_of(most)) // needs.page
        if kv_memory is None:
            pages = min(pages, useful_pages)
    left = beside_weights - needs.workspace_of(pages)
    if pages < 1 or pages * needs.page > left:
        raise KVBudgetError(_refusal(needs, available, device, pages, left))
    return pages


def agree_on_pages(group: RankGroup | None, plan: Callable[[], int]) -> int:
    """Return the KV pages that every rank has memory for.

    Args:
        group: the ranks; None for one.
        plan: measures, and says how many this rank has memory for.

    Raises:
        KVBudgetError: this rank, or another one, has not enough memory.
        Exception: what `plan` raises.
    """
    if group is None:
        return plan()
    try:
        pages = plan()
    except Exception:
        group.least(0)  # the others wait for an answer
        raise
    least = group.least(pages)
    if least < 1:
        raise KVBudgetError("another rank has too little memory; its own message says how much it needs")
    return least


def _refusal(needs: MemoryNeeds, available: int, device: torch.device, pages: int, left: int) -> str:
    of_graphs = needs.recorded_of(pages)
    recorded = f" ({format_bytes(of_graphs)} of it for recorded steps)" if of_graphs else ""
    sum_ = (
        f"{format_bytes(available)} available - {format_bytes(needs.weights)} weights ({needs.weights_name}) "
        f"- {format_bytes(needs.workspace_of(pages))} workspace{recorded} = {format_bytes(left)} left"
    )
    remedies = "; ".join(needs.remedies())
    if left < needs.page:
        return f"the model does not fit on {device}: {sum_}. Free memory, or: {remedies}"
    per_token = needs.page // needs.page_size
    return (
        f"the KV pool does not fit on {device}: {sum_}; wanted {pages * needs.page_size} tokens "
        f"({pages} pages) x {format_bytes(per_token)} per token = {format_bytes(pages * needs.page)}. "
        f"Give it room for one page of {needs.page_size} tokens up to {left // per_token} tokens, "
        f"free memory, or: {remedies}"
    )


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
