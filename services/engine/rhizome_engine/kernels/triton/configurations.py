"""How the products of small batches are cut into programs: one table, by the size of the matrix.

Nothing is tuned at run time: a start compiles what it runs and no more. `candidates` lists alternatives that
a benchmark can time on another GPU, and `OVERRIDES` is where its findings go.

One row of x ("vector"): a program multiplies a tile of the matrix element by element and adds up. What counts
is how many bytes are under way: by Little's law 4.8 TB/s at 0.7 us needs 25 KB on each of 132
multiprocessors. So each thread holds four pieces of 16 bytes, of four rows of the matrix, and as many warps
work side by side as it takes for a row, at most eight: the assembler then issues all loads before it waits
for the first, and six such programs fit into a multiprocessor.

Two to sixteen rows ("tile"): tensor cores, with x padded to 16 rows. The loads of the next `num_stages` - 1
tiles are under way in shared memory. Where the matrix has few rows, `split_k` programs share each of them,
and a second kernel adds their parts in a fixed order.
"""

from __future__ import annotations

import os
from dataclasses import dataclass, replace
from functools import lru_cache

import triton

from rhizome_engine.kernels.triton.runtime import interpreted

MULTIPROCESSORS = 132
"""Of an H100 or H200; other GPUs are served by the same table."""
_STAGES = 4
"""Tiles under way; no part of a split row is shorter than that."""
_ROWS_OF_A_THREAD = 128 if interpreted() else 4
_NARROW_TILE, _WIDE_TILE = (128, 128) if interpreted() else (32, 64)
"""The interpreter runs programs one after the other: few large ones take less time."""


@dataclass(frozen=True, slots=True)
class ProductShape:
    """A product as the table sees it.

    Attributes:
        one_row: x has one row.
        outputs: columns of the result; half of the matrix's rows where it is gated.
        inputs: columns of the matrix.
        itemsize: bytes of an element of the matrix.
        gated: a program reads two rows of the matrix for each output.
    """

    one_row: bool
    outputs: int
    inputs: int
    itemsize: int
    gated: bool


@dataclass(frozen=True, slots=True)
class Configuration:
    """How a product is cut.

    Attributes:
        block_n: outputs of a program.
        block_k: inputs that a program takes at once.
        num_warps: of a program.
        num_stages: tiles under way at once; for several rows of x.
        split_k: programs that share a row of the matrix; for several rows of x.
        dependent_launch: for one row of x: the kernel starts before the one ahead of it has ended and
            fetches its first tile of the matrix meanwhile (Hopper's programmatic dependent launch).
    """

    block_n: int
    block_k: int
    num_warps: int = 4
    num_stages: int = 1
    split_k: int = 1
    dependent_launch: bool = False


DEPENDENT_LAUNCHES = os.environ.get("RHIZOME_DEPENDENT_LAUNCHES") == "1" and not interpreted()
"""Whether all products of one row start early. Never tried on a GPU, hence off."""
OVERRIDES: dict[ProductShape, Configuration] = {}
"""Shapes for which something else than the rules below was measured to be best."""


@lru_cache(maxsize=512)
def _by_rule(shape: ProductShape) -> Configuration:
    return _vector(shape) if shape.one_row else _tile(shape)


def configuration(shape: ProductShape) -> Configuration:
    """Return how a product of this shape is cut."""
    return OVERRIDES.get(shape) or _by_rule(shape)


def candidates(shape: ProductShape) -> list[Configuration]:
    """Return configurations worth timing, the one of the table first; each computes the same product."""
    first = configuration(shape)
    found = [first]
    if shape.one_row:
        for warps in (1, 2, 4, 8, 16):
            block_k = warps * 512 // shape.itemsize
            if block_k < 2 * shape.inputs:
                found += [
                    Configuration(rows, block_k * passes, warps) for rows in (1, 2, 4, 8) for passes in (1, 2)
                ]
    else:
        for block_n in (16, 32, 64, 128):
            for block_k in (64, 128, 256):
                for split_k in (1, 2, 4, 8):
                    for stages in (3, 5):
                        tile = Configuration(block_n, block_k, first.num_warps, stages, split_k)
                        if _fits(shape, tile) and split_k * block_k <= shape.inputs:
                            found.append(tile)
    if shape.one_row:
        found.append(replace(first, dependent_launch=not first.dependent_launch))
    return list(dict.fromkeys(found))


def _vector(shape: ProductShape) -> Configuration:
    """Cut for one row of x: the widest pieces that fill the matrix's rows but for an eighth."""
    widths = [warps * 512 // shape.itemsize for warps in (8, 4, 2, 1)]
    narrow = max(widths[-1], triton.next_power_of_2(shape.inputs))
    fits = (width for width in widths if _padded(shape.inputs, width) <= shape.inputs * 9 // 8)
    block_k = min(next(fits, widths[-1]), narrow)
    block_n = max(1, _ROWS_OF_A_THREAD // (1 + shape.gated))
    while block_n > 1 and triton.cdiv(shape.outputs, block_n) < 2 * MULTIPROCESSORS and not interpreted():
        block_n //= 2
    num_warps = max(1, block_k * shape.itemsize // 512)
    return Configuration(block_n, block_k, num_warps, dependent_launch=DEPENDENT_LAUNCHES)


def _padded(inputs: int, width: int) -> int:
    return -(-inputs // width) * width


def _tile(shape: ProductShape) -> Configuration:
    """Cut for tensor cores: wide tiles reread x less often, split rows keep every multiprocessor busy."""
    block_k = max(16, min(256 // shape.itemsize, triton.next_power_of_2(shape.inputs)))
    wide = shape.outputs >= 128 * MULTIPROCESSORS and not shape.gated
    block_n = _WIDE_TILE if wide else _NARROW_TILE
    block_n = max(16, min(block_n, triton.next_power_of_2(shape.outputs)))
    programs = triton.cdiv(shape.outputs, block_n)
    split_k = 1
    while 2 * split_k * programs <= 2 * MULTIPROCESSORS and shape.inputs >= 2 * split_k * _STAGES * block_k:
        split_k *= 2
    return Configuration(block_n, block_k, num_stages=_STAGES, split_k=min(split_k, 8))


def _fits(shape: ProductShape, tile: Configuration) -> bool:
    """Whether the tiles under way fit into the shared memory of a multiprocessor, 227 KB."""
    rows = 16 + tile.block_n * (1 + shape.gated)
    return tile.num_stages * rows * tile.block_k * shape.itemsize <= 200 * 1024
