"""Attention of rows with one new token: programs share out each context, and their parts are put together.

The grid is (row, key-value head, part). All query heads of a group meet a block of keys together, as rows of
one small matrix, so a key is read once. How many parts there are is fixed by the number of rows; how much a
part is follows from the row's context, on the device. So a recorded launch serves any contexts.

Where all rows of a step decode, a launch for storing would be a good part of the time. There queries
are normalised and rotated where they are needed, and the part that holds the end of a context begins with the
new key, which it also writes to its slot: nobody else reads it in this step.
"""

from __future__ import annotations

from typing import NamedTuple

import triton
import triton.language as tl
from torch import Tensor

from rhizome_engine.attention.base import AttentionLayer
from rhizome_engine.attention.triton.blocks import finished, fold, product, slots_of_block, turned
from rhizome_engine.attention.triton.parts import Parts, reduce

_LEAST_ROWS = 16
"""Rows of the smallest matrix that tensor cores multiply."""
_BLOCK_BYTES = 8192
"""Of a block's keys: small blocks keep many programs busy when there are few rows."""


@triton.jit(do_not_specialize=["table_width"])  # which grows with contexts
def attention_decode(
    q,
    keys,
    values,
    out,
    part_weighted,
    part_top,
    part_total,
    query_start,
    context_len,
    row_slots,
    page_table,
    slot_mapping,
    cos,
    sin,
    q_gain,
    k_gain,
    table_width,
    scale,
    softcap,
    eps,
    IN_PARTS: tl.constexpr,
    GROUP: tl.constexpr,
    ROWS: tl.constexpr,
    NUM_KV_HEADS: tl.constexpr,
    HEAD_DIM: tl.constexpr,
    PADDED_DIM: tl.constexpr,
    PAGE_SIZE: tl.constexpr,
    BLOCK: tl.constexpr,
    WINDOW: tl.constexpr,
    CAPPED: tl.constexpr,
    ONE_EACH: tl.constexpr,
    FRESH: tl.constexpr,
    HALF: tl.constexpr,
    NORM_Q: tl.constexpr,
    NORM_K: tl.constexpr,
    WIDE: tl.constexpr,
):
    """Attend one part of one row's context for the query heads of one key-value head.

    FRESH says that `q` is what was projected, [tokens, heads of queries, keys, values], nothing of it stored.
    """
    row = tl.program_id(0)
    kv_head = tl.program_id(1)
    part = tl.program_id(2)
    num_parts = tl.num_programs(2)
    if ONE_EACH:
        token = row
    else:
        token = tl.load(query_start + row)
        if tl.load(query_start + row + 1) - token != 1:
            return
    length = tl.load(context_len + row)
    first = 0
    if WINDOW > 0:
        first = tl.maximum(length - WINDOW, 0)
    first_block = first // BLOCK
    end_block = tl.cdiv(length, BLOCK)
    share = tl.cdiv(end_block - first_block, num_parts)
    begin = first_block + part * share
    end = tl.minimum(begin + share, end_block)

    members = tl.arange(0, ROWS)
    dims = tl.arange(0, PADDED_DIM)
    heads = kv_head * GROUP + members
    there = (members < GROUP)[:, None] & (dims < HEAD_DIM)[None, :]
    place = (token.to(tl.int64) * (GROUP * NUM_KV_HEADS) + heads)[:, None] * HEAD_DIM + dims[None, :]
    table = page_table + tl.load(row_slots + row).to(tl.int64) * table_width

    top = tl.full([ROWS], float("-inf"), tl.float32)
    total = tl.zeros([ROWS], tl.float32)
    weighted = tl.zeros([ROWS, PADDED_DIM], tl.float32)
    if FRESH:
        token_start = q + token.to(tl.int64) * ((GROUP + 2) * NUM_KV_HEADS * HEAD_DIM)
        cos += token * HALF
        sin += token * HALF
        query = turned(
            token_start + heads[:, None] * HEAD_DIM,
            there,
            q_gain,
            cos,
            sin,
            eps,
            HEAD_DIM,
            PADDED_DIM,
            HALF,
            NORM_Q,
        ).to(keys.dtype.element_ty)
        # The new key comes first in the part that holds the end; it makes the running result one of one key.
        holds_end = (begin < end) & (end == end_block)
        new = (tl.arange(0, 1) == 0)[:, None] & (dims < HEAD_DIM)[None, :] & holds_end
        k_start = token_start + (GROUP * NUM_KV_HEADS + kv_head + tl.arange(0, 1))[:, None] * HEAD_DIM
        new_k = turned(k_start, new, k_gain, cos, sin, eps, HEAD_DIM, PADDED_DIM, HALF, NORM_K)
        new_k = new_k.to(keys.dtype.element_ty)
        new_v = tl.load(k_start + NUM_KV_HEADS * HEAD_DIM + dims[None, :], mask=new, other=0.0)
        new_v = new_v.to(tl.float32).to(values.dtype.element_ty)
        slot = tl.load(slot_mapping + token).to(tl.int64)
        written = (slot * NUM_KV_HEADS + kv_head) * HEAD_DIM + dims[None, :]
        tl.store(keys + written, new_k, mask=new & (slot >= 0))
        tl.store(values + written, new_v, mask=new & (slot >= 0))
        score = tl.sum(query.to(tl.float32) * new_k.to(tl.float32), 1)
        top = tl.where(holds_end, finished(score, scale, softcap, CAPPED), top)
        total = tl.where(holds_end, 1.0, total)
        weighted = weighted + new_v.to(tl.float32)
        length = length - 1
    else:
        query = tl.load(q + place, mask=there, other=0.0)

    for block in range(begin, end):
        slots = slots_of_block(table, block, length, BLOCK, PAGE_SIZE)
        positions = block * BLOCK + tl.arange(0, BLOCK)
        # Not masked afterwards but never read: what lies beyond the context may be NaN.
        readable = (positions < length)[:, None] & (dims < HEAD_DIM)[None, :]
        offsets = (slots * NUM_KV_HEADS + kv_head)[:, None] * HEAD_DIM + dims[None, :]
        k = tl.load(keys + offsets, mask=readable, other=0.0)
        scores = finished(product(query, tl.trans(k), WIDE), scale, softcap, CAPPED)
        seen = positions < length
        if WINDOW > 0:
            seen = seen & (positions >= first)
        scores = tl.where(seen[None, :], scores, float("-inf"))
        v = tl.load(values + offsets, mask=readable, other=0.0)
        top, total, weighted = fold(scores, v, top, total, weighted, WIDE)

    if IN_PARTS:
        index = (row.to(tl.int64) * (GROUP * NUM_KV_HEADS) + heads) * num_parts + part
        member = members < GROUP
        tl.store(part_top + index, top, mask=member)
        tl.store(part_total + index, total, mask=member)
        some = there & (total > 0.0)[:, None]
        tl.store(part_weighted + index[:, None] * HEAD_DIM + dims[None, :], weighted, mask=some)
    else:
        result = weighted / tl.where(total > 0.0, total, 1.0)[:, None]
        tl.store(out + place, result.to(out.dtype.element_ty), mask=there)


class Fresh(NamedTuple):
    """What a step brings where nothing of it is stored yet.

    Attributes:
        qkv: [num_tokens, (num_heads + 2 * num_kv_heads) * head_dim], contiguous.
        table: cosines and sines, each [num_tokens, rotary_dim / 2] float32; None for no rotation.
        slot_mapping: [num_tokens] int64; nothing is stored of a token whose slot is negative.
    """

    qkv: Tensor
    table: tuple[Tensor, Tensor] | None
    slot_mapping: Tensor


def block_size(head_dim: int, element: int) -> int:
    """Keys of a block, for elements of so many bytes."""
    padded: int = triton.next_power_of_2(head_dim)
    return max(16, min(128, _BLOCK_BYTES // (padded * element)))


def decode(
    layer: AttentionLayer,
    q: Tensor | Fresh,
    keys: Tensor,
    values: Tensor,
    out: Tensor,
    parts: Parts,
    query_start: Tensor,
    context_len: Tensor,
    row_slots: Tensor,
    page_table: Tensor,
    *,
    one_each: bool,
    wide: bool,
) -> None:
    """Attend the rows that have exactly one new token; results of other rows are left alone.

    Args:
        layer: of the model.
        q: [num_tokens, num_heads, head_dim] of the pool's type, ready to attend; or what the step brings, and
            then that is stored.
        keys: [num_pages, page_size, num_kv_heads, head_dim].
        values: like keys.
        out: [num_tokens, num_heads, head_dim], written; 0 for a row without context.
        parts: for `num_parts` parts of each row.
        query_start: [num_rows + 1] int32.
        context_len: [num_rows] int32.
        row_slots: [num_rows] int32, each row's row of the page table.
        page_table: [slots, pages] int32.
        one_each: every row has one new token, so that token t belongs to row t.
        wide: multiply in float32 what cannot be multiplied in its own type (in the interpreter).
    """
    padded = triton.next_power_of_2(layer.head_dim)
    queries, table, slot_mapping = q if isinstance(q, Fresh) else (q, None, query_start)
    cos, sin = (queries, queries) if table is None else table  # a kernel wants pointers, read or not
    group = layer.num_heads // layer.num_kv_heads
    attention_decode[(len(context_len), layer.num_kv_heads, parts.count)](
        queries,
        keys,
        values,
        out,
        parts.weighted,
        parts.top,
        parts.total,
        query_start,
        context_len,
        row_slots,
        page_table,
        slot_mapping,
        cos,
        sin,
        queries if layer.q_norm is None else layer.q_norm,
        queries if layer.k_norm is None else layer.k_norm,
        page_table.stride(0),
        layer.scale,
        layer.softcap,
        layer.norm_eps,
        IN_PARTS=parts.count > 1,
        GROUP=group,
        ROWS=max(_LEAST_ROWS, triton.next_power_of_2(group)),
        NUM_KV_HEADS=layer.num_kv_heads,
        HEAD_DIM=layer.head_dim,
        PADDED_DIM=max(16, padded),
        PAGE_SIZE=keys.shape[1],
        BLOCK=block_size(layer.head_dim, keys.element_size()),
        WINDOW=layer.window,
        CAPPED=layer.softcap > 0,
        ONE_EACH=one_each,
        FRESH=isinstance(q, Fresh),
        HALF=0 if table is None else cos.shape[-1],
        NORM_Q=layer.q_norm is not None,
        NORM_K=layer.k_norm is not None,
        WIDE=wide,
        num_warps=4,
        num_stages=3,
    )
    if parts.count > 1:
        reduce(parts, out, query_start, one_each=one_each)
