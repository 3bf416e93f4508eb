"""Gated activation of many rows: activation(first half) * second half."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
import triton
import triton.language as tl
from torch import Tensor

from rhizome_engine.kernels.triton.arithmetic import activate

if TYPE_CHECKING:
    from rhizome_engine.checkpoint.model_config import Activation

BLOCK = 1024


@triton.jit
def _gate(both, out, size, BLOCK: tl.constexpr, GELU: tl.constexpr):
    row = tl.program_id(0).to(tl.int64)
    columns = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    present = columns < size
    gate = tl.load(both + row * 2 * size + columns, mask=present, other=0.0).to(tl.float32)
    up = tl.load(both + row * 2 * size + size + columns, mask=present, other=0.0).to(tl.float32)
    result = activate(gate, GELU) * up
    tl.store(out + row * size + columns, result.to(out.dtype.element_ty), mask=present)


def gate(both: Tensor, activation: Activation) -> Tensor:
    """Return [n, size], newly allocated, of gate and up side by side, [n, 2 * size]."""
    both = both.contiguous()
    rows, size = len(both), both.shape[1] // 2
    out = torch.empty(rows, size, dtype=both.dtype, device=both.device)
    if rows:
        grid = (rows, triton.cdiv(size, BLOCK))
        _gate[grid](both, out, size, BLOCK=BLOCK, GELU=activation == "gelu_tanh", num_warps=4)
    return out
