"""What turns logits into log probabilities: the logarithm of a row's summed exponentials."""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

_BLOCK = 2048


def log_normalisers(logits: Tensor, rows: Tensor) -> Tensor:
    """Return [k] float32, the log of the summed exponentials of some rows; NaN where a row holds NaN or +inf.

    Args:
        logits: [n, vocab_size], the tokens of a row beside each other.
        rows: [k] int64, which of them.
    """
    vocab_size = logits.shape[1]
    num_blocks = triton.cdiv(vocab_size, _BLOCK)
    of_blocks = torch.empty((len(rows), num_blocks), dtype=torch.float32, device=logits.device)
    _log_sums[len(rows), num_blocks](
        logits, logits.stride(0), rows, vocab_size, of_blocks, BLOCK=_BLOCK, num_warps=4
    )
    return of_blocks.logsumexp(dim=-1)


@triton.jit
def _log_sums(logits, row_stride, rows, vocab_size, of_blocks, BLOCK: tl.constexpr):
    """Write the log of a block's summed exponentials: [k, blocks]."""
    row = tl.load(rows + tl.program_id(0)).to(tl.int64)
    places = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    values = tl.load(logits + row * row_stride + places, mask=places < vocab_size, other=float("-inf"))
    values = values.to(tl.float32)
    wrong = tl.max(((values != values) | (values == float("inf"))).to(tl.int32), axis=0)
    finite = tl.where(values < float("inf"), values, float("-inf"))
    largest = tl.maximum(tl.max(finite, axis=0), -3.0e38)  # a number where all are -inf
    log_sum = largest + tl.log(tl.maximum(tl.sum(tl.exp(finite - largest), axis=0), 1.2e-38))
    log_sum = tl.where(largest > -3.0e38, log_sum, float("-inf"))
    log_sum = tl.where(wrong > 0, float("nan"), log_sum)
    tl.store(of_blocks + tl.program_id(0) * tl.num_programs(1) + tl.program_id(1), log_sum)
