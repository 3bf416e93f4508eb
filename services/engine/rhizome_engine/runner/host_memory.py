"""How many pages the host tier has, from memory that is measured; refused with the arithmetic."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

import torch

from rhizome_engine.memory_size import MemorySize, format_bytes
from rhizome_engine.runner.host_pages import buffer_pages
from rhizome_engine.runner.memory import KVBudgetError, MemoryNeeds, agree_on_pages, available_bytes

if TYPE_CHECKING:
    from rhizome_engine.parallel.group import RankGroup


def plan_host_pages(
    needs: MemoryNeeds,
    size: MemorySize | None,
    device: torch.device,
    *,
    num_pages: int,
    memory_share: float,
    group: RankGroup | None,
) -> int:
    """Decide the size of the host tier before anything is allocated.

    Args:
        needs: of the model on this rank, with the bytes of a page.
        size: what the engine may take, over all ranks; a share is one of what is free. None for no tier.
        device: a CPU's model and pool take their memory from the same.
        num_pages: of the KV pool.
        memory_share: part of the free memory to count on; on a CPU, of each rank.
        group: the ranks that share the tier evenly; None for one.

    Returns:
        pages of each rank.

    Raises:
        KVBudgetError: it is less than a page, or does not fit.
    """
    if size is None:
        return 0
    ranks = 1 if group is None else group.size
    on_cpu = device.type == "cpu"
    available = int(available_bytes(torch.device("cpu")) * memory_share)
    if not on_cpu:
        available //= ranks
    taken = needs.weights + needs.workspace_of(num_pages) + num_pages * needs.page if on_cpu else 0
    return agree_on_pages(group, lambda: fit_host_pages(needs, size, available, taken, ranks))


def fit_host_pages(needs: MemoryNeeds, size: MemorySize, available: int, taken: int, ranks: int = 1) -> int:
    """Return the pages of one rank.

    Args:
        needs: with the bytes of a page.
        size: what the engine may take, over all ranks.
        available: free bytes that this rank may count on.
        taken: what its model and pool take of them.
        ranks: how many there are.

    Raises:
        KVBudgetError: it is less than a page, or does not fit.
    """
    left = available - taken
    wanted = size.of(left) if size.num_bytes is None else size.num_bytes // ranks
    pages = wanted // needs.page
    if pages < 1:
        raise KVBudgetError(
            f"{format_bytes(wanted)} of host memory for the prefix cache is less than one page of "
            f"{needs.page_size} tokens, {format_bytes(needs.page)}; give --kv-host-memory at least that, "
            "or a smaller --page-size"
        )
    if pages * needs.page > left:
        less = f" - {format_bytes(taken)} weights, workspace and KV pool" if taken else ""
        raise KVBudgetError(
            f"the host tier does not fit: {format_bytes(available)} available{less} = {format_bytes(left)} "
            f"left; wanted {pages * needs.page_size} tokens ({pages} pages) x "
            f"{format_bytes(needs.page // needs.page_size)} per token = {format_bytes(pages * needs.page)}. "
            "Give --kv-host-memory less, or free memory"
        )
    return pages


def with_buffer(needs: MemoryNeeds) -> MemoryNeeds:
    """Return the needs of a runner that has a host tier: pages travel through a buffer on the device."""
    buffer = buffer_pages(needs.page) * needs.page
    workspace = needs.workspace
    return replace(needs, workspace=lambda context: workspace(context) + buffer)
