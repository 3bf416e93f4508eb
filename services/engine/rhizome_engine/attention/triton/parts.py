"""Results of parts of contexts, and how they are put together."""

from __future__ import annotations

from dataclasses import dataclass

import triton
import triton.language as tl
from torch import Tensor

_MOST_PARTS = 64
_FEW_PARTS = 8
"""The kernel is compiled for so many and for the most: not anew each time that contexts have grown."""


@dataclass(frozen=True, slots=True)
class Parts:
    """Where parts of results wait to be put together, of rows * heads * count parts; float32.

    Attributes:
        count: parts of each row.
        weighted: [rows, heads, count, head_dim].
        top: [rows, heads, count].
        total: like top.
    """

    count: int
    weighted: Tensor
    top: Tensor
    total: Tensor


def num_parts(
    num_rows: int, num_kv_heads: int, longest_context: int, block: int, multiprocessors: int
) -> int:
    """Into how many parts contexts are cut: enough to occupy the device, none that is always empty."""
    wanted = 4 * multiprocessors // max(1, num_rows * num_kv_heads)
    return max(1, min(wanted, _MOST_PARTS, -(-longest_context // block)))


@triton.jit(do_not_specialize=["num_parts"])
def attention_reduce(
    part_weighted,
    part_top,
    part_total,
    out,
    query_start,
    num_parts,
    NUM_HEADS: tl.constexpr,
    PADDED_PARTS: tl.constexpr,
    HEAD_DIM: tl.constexpr,
    PADDED_DIM: tl.constexpr,
    ONE_EACH: tl.constexpr,
):
    """Put the parts of a row's head together, always in the same order; a part without keys is not read."""
    row = tl.program_id(0)
    head = tl.program_id(1)
    if ONE_EACH:
        token = row
    else:
        token = tl.load(query_start + row)
        if tl.load(query_start + row + 1) - token != 1:
            return
    parts = tl.arange(0, PADDED_PARTS)
    dims = tl.arange(0, PADDED_DIM)
    index = (row.to(tl.int64) * NUM_HEADS + head) * num_parts + parts
    total = tl.load(part_total + index, mask=parts < num_parts, other=0.0)
    some = total > 0.0
    top = tl.load(part_top + index, mask=some, other=float("-inf"))
    highest = tl.max(top, 0)
    highest = tl.where(highest == float("-inf"), 0.0, highest)
    weights = tl.exp2(top - highest)
    all_weighted = tl.load(
        part_weighted + index[:, None] * HEAD_DIM + dims[None, :],
        mask=some[:, None] & (dims < HEAD_DIM)[None, :],
        other=0.0,
    )
    denominator = tl.sum(total * weights, 0)
    result = tl.sum(all_weighted * weights[:, None], 0) / tl.where(denominator > 0.0, denominator, 1.0)
    place = out + (token.to(tl.int64) * NUM_HEADS + head) * HEAD_DIM + dims
    tl.store(place, result.to(out.dtype.element_ty), mask=dims < HEAD_DIM)


def reduce(parts: Parts, out: Tensor, query_start: Tensor, *, one_each: bool) -> None:
    """Put the parts of rows with one new token together.

    Args:
        parts: of all rows.
        out: [num_tokens, num_heads, head_dim], written.
        query_start: [num_rows + 1] int32.
        one_each: token t belongs to row t.
    """
    num_rows, num_heads, count = parts.top.shape
    head_dim = out.shape[-1]
    attention_reduce[(num_rows, num_heads)](
        parts.weighted,
        parts.top,
        parts.total,
        out,
        query_start,
        count,
        NUM_HEADS=num_heads,
        PADDED_PARTS=_FEW_PARTS if count <= _FEW_PARTS else _MOST_PARTS,
        HEAD_DIM=head_dim,
        PADDED_DIM=triton.next_power_of_2(head_dim),
        ONE_EACH=one_each,
        num_warps=4,
    )
