"""Rows of a vocabulary's length, looked at in blocks of 256.

Reducing blocks first is several times faster on a CPU than one pass that carries an index or a running sum
in double precision. Every block is reduced on its own and in one order, so that a row's result does not
depend on how many rows there are.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator

import torch
from torch import Tensor

BLOCK = 256

_CPU_CHUNK = 8
"""Rows of a large vocabulary whose temporaries stay in a core's cache."""


def row_chunks(num_rows: int, device: torch.device) -> Iterator[slice]:
    """Cut rows into so many as are best computed at once: few on a CPU, all elsewhere."""
    size = _CPU_CHUNK if device.type == "cpu" else max(num_rows, 1)
    return (slice(start, start + size) for start in range(0, num_rows, size))


def argmax(values: Tensor) -> tuple[Tensor, Tensor]:
    """Return the largest value of each row of [n, width], [n], and the first place where it stands, [n].

    A row with NaN gives NaN.
    """
    maxima = _reduce(values, torch.amax)
    block = maxima.argmax(dim=-1, keepdim=True)
    inside, places = _take(values, block)
    best = inside.argmax(dim=-1, keepdim=True)
    return maxima.gather(1, block)[:, 0], places.gather(1, best)[:, 0]


def invert_sums(weights: Tensor, targets: Tensor) -> tuple[Tensor, Tensor]:
    """Find where running sums pass a target.

    Args:
        weights: [n, width] float32, none negative.
        targets: [n, 1] float64, as fractions of the whole sum, in [0, 1).

    Returns:
        places: [n] int64, the first place whose running sum exceeds the target. Never one of weight 0.
        valid: [n] bool, False where the sum is 0 or no number; the place then means nothing.
    """
    sums = sum_blocks(weights).cumsum(dim=-1, dtype=torch.float64)
    total = sums[:, -1:]
    block, target = _first_above(sums, targets * total)
    before = sums.gather(1, (block - 1).clamp_(min=0)).where(block > 0, 0.0)
    inside, places = _take(weights, block)
    # A block's float32 sum and the running sum of its weights differ by rounding.
    best, _ = _first_above(inside.cumsum(dim=-1, dtype=torch.float64), target - before)
    return places.gather(1, best)[:, 0], is_distribution(total)


def is_distribution(total: Tensor) -> Tensor:
    """Whether weights with these sums, [n, 1], can be drawn from: [n]."""
    return ((total > 0) & (total < float("inf")))[:, 0]


def sum_blocks(values: Tensor) -> Tensor:
    """Return the sums of the blocks of each row, [n, blocks]."""
    return _reduce(values, torch.sum)


def row_sums(values: Tensor) -> Tensor:
    """Return the sum of each row, [n, 1] float64, added in the same order whatever n is."""
    return sum_blocks(values).cumsum(dim=-1, dtype=torch.float64)[:, -1:]


def _first_above(sums: Tensor, targets: Tensor) -> tuple[Tensor, Tensor]:
    """Return the first places where sums exceed targets, [n, 1], and the targets made reachable."""
    total = sums[:, -1:]
    # Rounding may give the total itself, which lies beyond the last place.
    targets = targets.minimum(torch.nextafter(total, torch.zeros_like(total)))
    # right=True: the first sum above the target, which a weight of 0 never is.
    # NaN ends beyond the row.
    return torch.searchsorted(sums, targets, right=True).clamp_(max=sums.shape[1] - 1), targets


def _reduce(values: Tensor, reduction: Callable[..., Tensor]) -> Tensor:
    """Reduce whole blocks, and what is left at the row's end as one more."""
    whole = values.shape[1] // BLOCK * BLOCK
    parts = []
    if whole:
        parts.append(values[:, :whole].view(len(values), -1, BLOCK))
    if whole < values.shape[1]:
        parts.append(values[:, None, whole:])
    reduced = [reduction(part, dim=-1) for part in parts]
    return reduced[0] if len(reduced) == 1 else torch.cat(reduced, dim=1)


def _take(values: Tensor, block: Tensor) -> tuple[Tensor, Tensor]:
    """Return one block per row, [n, BLOCK], and its places in the row; the row's last place repeats."""
    places = block * BLOCK + torch.arange(BLOCK, device=values.device)
    places = places.clamp_(max=values.shape[1] - 1)
    return values.gather(1, places), places
