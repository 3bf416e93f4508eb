"""Tokens that the step before chose, written into the inputs of this one."""

from __future__ import annotations

import triton
import triton.language as tl
from torch import Tensor

_BLOCK = 256


def fill_late(token_ids: Tensor, positions: Tensor, late_slots: Tensor, tokens: Tensor) -> None:
    """Do what `TokenTable.fill_late_static` says, in one launch; `tokens` are the table's."""
    count = len(token_ids)
    grid = (triton.cdiv(count, _BLOCK),)
    _fill_late[grid](
        token_ids, positions, late_slots, count, tokens, tokens.stride(0), tokens.shape[1],
        BLOCK=_BLOCK, num_warps=4,
    )  # fmt: skip


@triton.jit(do_not_specialize=["count"])
def _fill_late(
    token_ids, positions, late_slots, count, tokens, tokens_stride, max_context, BLOCK: tl.constexpr
):
    places = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    slots = tl.load(late_slots + places, mask=places < count, other=-1).to(tl.int64)
    position = tl.load(positions + places, mask=slots >= 0, other=0)
    late = (slots >= 0) & (position >= 0) & (position < max_context)
    token = tl.load(tokens + slots * tokens_stride + position, mask=late, other=0)
    tl.store(token_ids + places, token.to(tl.int64), mask=late)
