"""Attention of rows with several new tokens, over all of their context in the pool.

A program takes a block of one row's new tokens and one key-value head; the query heads of the group stand
beside each other as rows of one matrix. Which row a program works for is found from `query_start` on the
device, so that the grid depends on the sizes of a step alone: row r begins at block

    query_start[r] // TOKENS + r

which leaves each row at least as many blocks as it needs. What remains does nothing.
"""

from __future__ import annotations

from typing import NamedTuple

import triton
import triton.language as tl
from torch import Tensor

from rhizome_engine.attention.base import AttentionLayer
from rhizome_engine.attention.triton.blocks import finished, fold, product, slots_of_block

_SMALL_STEP = 512
"""Up to so many tokens a step has too few large blocks to occupy a device."""
_LEAST_STARTS = 256
"""Looked through for a program's row; one compiled kernel serves all steps of fewer rows."""


@triton.jit(do_not_specialize=["num_rows", "num_tokens", "table_width"])
def attention_extend(
    q,
    keys,
    values,
    out,
    query_start,
    context_len,
    row_slots,
    page_table,
    num_rows,
    num_tokens,
    table_width,
    scale,
    softcap,
    PADDED_STARTS: tl.constexpr,
    TOKENS: tl.constexpr,
    GROUP: tl.constexpr,
    PADDED_GROUP: tl.constexpr,
    NUM_KV_HEADS: tl.constexpr,
    HEAD_DIM: tl.constexpr,
    PADDED_DIM: tl.constexpr,
    PAGE_SIZE: tl.constexpr,
    BLOCK: tl.constexpr,
    WINDOW: tl.constexpr,
    CAPPED: tl.constexpr,
    SKIP_SINGLES: tl.constexpr,
    WIDE: tl.constexpr,
):
    """Attend TOKENS tokens of a row for one key-value head; tokens behind the last row get 0."""
    # The last blocks see the most keys; they begin first, so that no long one is left over at the end.
    index = tl.num_programs(0) - 1 - tl.program_id(0)
    kv_head = tl.program_id(1)
    rows = tl.arange(0, PADDED_STARTS)
    starts = tl.load(query_start + rows, mask=rows <= num_rows, other=0)
    begun = (rows <= num_rows) & (starts // TOKENS + rows <= index)
    row = tl.sum(begun.to(tl.int32), 0) - 1
    is_row = row < num_rows  # beyond the last one lie the padding tokens
    row_start = tl.load(query_start + row)
    row_end = tl.load(query_start + row + 1, mask=is_row, other=num_tokens)
    length = tl.load(context_len + row, mask=is_row, other=0)
    start = row_start + (index - row_start // TOKENS - row) * TOKENS
    if start >= row_end:
        return
    if SKIP_SINGLES:  # noqa: SIM102, decided when the kernel is compiled, the other one when it runs
        if is_row & (row_end - row_start == 1):
            return

    members = tl.arange(0, TOKENS * PADDED_GROUP)
    tokens = start + members // PADDED_GROUP
    in_group = members % PADDED_GROUP
    dims = tl.arange(0, PADDED_DIM)
    there = ((tokens < row_end) & (in_group < GROUP))[:, None] & (dims < HEAD_DIM)[None, :]
    heads = kv_head * GROUP + in_group
    place = (tokens.to(tl.int64) * (GROUP * NUM_KV_HEADS) + heads)[:, None] * HEAD_DIM + dims[None, :]
    query = tl.load(q + place, mask=there, other=0.0)
    table = page_table + tl.load(row_slots + row, mask=is_row, other=0).to(tl.int64) * table_width

    offset = length - row_end  # what a token's place in the step lacks to its position
    first = offset + start
    last = offset + tl.minimum(start + TOKENS, row_end) - 1
    top = tl.full([TOKENS * PADDED_GROUP], float("-inf"), tl.float32)
    total = tl.zeros([TOKENS * PADDED_GROUP], tl.float32)
    weighted = tl.zeros([TOKENS * PADDED_GROUP, PADDED_DIM], tl.float32)

    if WINDOW > 0:
        begin = tl.maximum(first - WINDOW + 1, 0) // BLOCK
    else:
        # Blocks that all of the tokens see whole need no mask.
        begin = tl.maximum(first + 1, 0) // BLOCK
        for block in range(0, begin):
            slots = slots_of_block(table, block, length, BLOCK, PAGE_SIZE)
            offsets = (slots * NUM_KV_HEADS + kv_head)[:, None] * HEAD_DIM + dims[None, :]
            k = tl.load(keys + offsets, mask=(dims < HEAD_DIM)[None, :], other=0.0)
            scores = finished(product(query, tl.trans(k), WIDE), scale, softcap, CAPPED)
            v = tl.load(values + offsets, mask=(dims < HEAD_DIM)[None, :], other=0.0)
            top, total, weighted = fold(scores, v, top, total, weighted, WIDE)
    for block in range(begin, tl.cdiv(tl.maximum(last + 1, 0), BLOCK)):
        slots = slots_of_block(table, block, length, BLOCK, PAGE_SIZE)
        positions = block * BLOCK + tl.arange(0, BLOCK)
        # Not masked afterwards but never read: what lies beyond the context may be NaN.
        readable = (positions < length)[:, None] & (dims < HEAD_DIM)[None, :]
        offsets = (slots * NUM_KV_HEADS + kv_head)[:, None] * HEAD_DIM + dims[None, :]
        k = tl.load(keys + offsets, mask=readable, other=0.0)
        scores = finished(product(query, tl.trans(k), WIDE), scale, softcap, CAPPED)
        distance = (offset + tokens)[:, None] - positions[None, :]
        seen = (distance >= 0) & (positions < length)[None, :]
        if WINDOW > 0:
            seen = seen & (distance < WINDOW)
        scores = tl.where(seen, scores, float("-inf"))
        v = tl.load(values + offsets, mask=readable, other=0.0)
        top, total, weighted = fold(scores, v, top, total, weighted, WIDE)

    result = weighted / tl.where(total > 0.0, total, 1.0)[:, None]
    tl.store(out + place, result.to(out.dtype.element_ty), mask=there)


class Tiles(NamedTuple):
    """How a launch is cut.

    Attributes:
        rows: of the query matrix: tokens times heads of a group.
        block: keys of a block.
        warps: of a program.
        stages: blocks under way to a program at once.
        registers: most of a thread; None leaves it to the compiler.
    """

    rows: int
    block: int
    warps: int
    stages: int
    registers: int | None = None


def tiles(
    num_tokens: int, head_dim: int, element: int, *, large_shared_memory: bool, hopper: bool = False
) -> Tiles:
    """Choose for a step of so many tokens and elements of so many bytes.

    On Hopper narrow heads need 178 registers if they may, but do with 128, none of which spills: then 16
    warps fit into a multiprocessor instead of 8.
    """
    padded = triton.next_power_of_2(head_dim)
    if element > 2:  # float32 is not multiplied in tensor cores but in registers, which do not hold much
        return Tiles(16, 16, 4, 2) if padded > 64 else Tiles(32, 32, 4, 2)
    stages = 3 if large_shared_memory else 2
    if padded > 128:
        return Tiles(64, 32, 4, stages)
    registers = 128 if hopper and padded <= 64 else None
    if num_tokens <= _SMALL_STEP:
        return Tiles(64, 64, 4, stages, registers)
    return Tiles(128, 64, 8, stages, registers)


def extend(
    layer: AttentionLayer,
    q: Tensor,
    keys: Tensor,
    values: Tensor,
    out: Tensor,
    query_start: Tensor,
    context_len: Tensor,
    row_slots: Tensor,
    page_table: Tensor,
    cut: Tiles,
    *,
    skip_singles: bool,
    wide: bool,
) -> None:
    """Attend all rows, or all but those of one new token; the arguments are those of `decode`.

    Args:
        layer: of the model.
        q: as in `decode`.
        keys: as in `decode`.
        values: as in `decode`.
        out: as in `decode`; 0 also for tokens from `query_start[-1]` on.
        query_start: as in `decode`.
        context_len: as in `decode`.
        row_slots: as in `decode`.
        page_table: as in `decode`.
        cut: sizes of blocks.
        skip_singles: leave rows of one new token, and their results, to `decode`.
        wide: as in `decode`.
    """
    num_tokens, num_rows = len(q), len(context_len)
    group = layer.num_heads // layer.num_kv_heads
    padded_group = triton.next_power_of_2(group)
    options = {} if cut.registers is None else {"maxnreg": cut.registers}
    tokens = max(1, cut.rows // padded_group)
    attention_extend[(num_tokens // tokens + num_rows + 1, layer.num_kv_heads)](
        q,
        keys,
        values,
        out,
        query_start,
        context_len,
        row_slots,
        page_table,
        num_rows,
        num_tokens,
        page_table.stride(0),
        layer.scale,
        layer.softcap,
        PADDED_STARTS=max(_LEAST_STARTS, triton.next_power_of_2(num_rows + 1)),
        TOKENS=tokens,
        GROUP=group,
        PADDED_GROUP=padded_group,
        NUM_KV_HEADS=layer.num_kv_heads,
        HEAD_DIM=layer.head_dim,
        PADDED_DIM=max(16, triton.next_power_of_2(layer.head_dim)),
        PAGE_SIZE=keys.shape[1],
        BLOCK=cut.block,
        WINDOW=layer.window,
        CAPPED=layer.softcap > 0,
        SKIP_SINGLES=skip_singles,
        WIDE=wide,
        num_warps=cut.warps,
        num_stages=cut.stages,
        **options,
    )
