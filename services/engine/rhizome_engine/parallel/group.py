"""The ranks that compute one model together, and what they tell each other while they compute.

NCCL between GPUs, gloo between processes on a CPU. Every operation is queued on the current stream and waits
for nothing on the host, so that steps which contain them can be recorded. All ranks must call the same
operations in the same order.
"""

from __future__ import annotations

import os
from datetime import timedelta

import torch
import torch.distributed as dist
from torch import Tensor

_LOOPBACK = "lo"
_gather = getattr(dist, "all_gather_single", None) or dist.all_gather_into_tensor
"""PyTorch 2.13 calls it by its new name and warns of the old one."""


class RankGroup:
    """This process's place among the ranks; `torch.distributed` is initialised.

    Args:
        rank: of this process.
        size: how many there are, at least 2.
        device: what this rank computes on.
    """

    def __init__(self, rank: int, size: int, device: torch.device) -> None:
        self.rank = rank
        self.size = size
        self.device = device

    def add_up(self, x: Tensor) -> None:
        """Add what all ranks have, [...], in place; every rank gets the same bits."""
        dist.all_reduce(x)

    def gather(self, x: Tensor) -> Tensor:
        """Return what all ranks have, [size, *x.shape]; x is contiguous."""
        together = x.new_empty((self.size * x.shape[0], *x.shape[1:]))
        _gather(together, x)
        return together.view(self.size, *x.shape)

    def copy_from_first(self, x: Tensor) -> None:
        """Overwrite x with what rank 0 has."""
        dist.broadcast(x, src=0)

    def least(self, number: int) -> int:
        """Return the smallest of what the ranks say; waits for all of them."""
        value = torch.tensor([number], dtype=torch.int64, device=self.device)
        dist.all_reduce(value, dist.ReduceOp.MIN)
        return int(value)


def check_free() -> None:
    """Refuse a process that belongs to a group already: there can be one.

    Raises:
        ValueError: it does.
    """
    if dist.is_initialized():
        raise ValueError(
            "torch.distributed is in use in this process already, by another model of several ranks or by "
            "the program itself; close that first, or give the model a process of its own"
        )


def join(store_path: str, rank: int, size: int, device: torch.device, timeout_s: float) -> RankGroup:
    """Meet the other ranks; returns when all are there.

    Args:
        store_path: a file that all ranks can open, empty at first.
        rank: of this process.
        size: how many there are.
        device: what this rank computes on.
        timeout_s: of meeting, and of one operation that was not recorded.

    Raises:
        RuntimeError: the others did not come.
    """
    # All ranks are on this host, and nobody beyond it should be able to connect.
    for variable in ("GLOO_SOCKET_IFNAME", "NCCL_SOCKET_IFNAME"):
        os.environ.setdefault(variable, _LOOPBACK)
    store = dist.FileStore(store_path, size)  # type: ignore[attr-defined]
    timeout = timedelta(seconds=timeout_s)
    if device.type == "cuda":
        torch.cuda.set_device(device)
        dist.init_process_group(
            "nccl", store=store, rank=rank, world_size=size, timeout=timeout, device_id=device
        )
    else:
        dist.init_process_group("gloo", store=store, rank=rank, world_size=size, timeout=timeout)
    return RankGroup(rank, size, device)


def leave() -> None:
    """Leave the group, which all ranks should do."""
    dist.destroy_process_group()


def abort() -> None:
    """Give up operations that wait for a rank that is gone, where the back end can."""
    give_up = getattr(dist.group.WORLD, "abort", None)
    if give_up is not None:
        try:
            give_up()
        except RuntimeError:  # gloo has no such thing: it notices by itself that a peer is gone
            return
