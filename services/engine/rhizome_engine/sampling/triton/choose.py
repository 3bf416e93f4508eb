"""Launches the kernels that choose a step's tokens."""

from __future__ import annotations

import torch
import triton
from torch import Tensor

from rhizome_engine.sampling.device_sampling import DeviceMasks, DeviceSampling
from rhizome_engine.sampling.token_table import TokenTable
from rhizome_engine.sampling.triton.decide import sampling_decide
from rhizome_engine.sampling.triton.scan import sampling_scan

_MOST_BLOCKS = 256
_LEAST_BLOCK = 128
_BLOCKS_PER_PROGRAM = 4
_TILE = 8192
"""Tokens that one program looks at together, in the second launch."""
_HELD = 256
"""Tokens that may reach the likeliest k's floor before it is searched for; see `top_k`."""


def block_size(vocab_size: int) -> int:
    """Tokens per block of the first pass. It follows from the vocabulary alone, never from the rows."""
    smallest = triton.next_power_of_2(triton.cdiv(vocab_size, _MOST_BLOCKS))
    return max(_LEAST_BLOCK, int(smallest))


def choose_edited(
    logits: Tensor, settings: DeviceSampling, table: TokenTable, masks: DeviceMasks | None
) -> Tensor:
    """Choose a token per row from logits that have their penalties already, and keep it in the table.

    Args:
        logits: [n, vocab_size] float32, bfloat16 or float16, a row's tokens beside each other; not changed.
        settings: of these rows.
        table: takes the tokens.
        masks: tokens that may be chosen in some rows.

    Returns:
        [n] int64, `NO_TOKEN` where nothing may be chosen and in padding rows. Shapes and launches follow from
        those of the arguments.
    """
    num_rows, vocab_size = logits.shape
    device = logits.device
    token_ids = torch.empty(num_rows, dtype=torch.int64, device=device)
    if not num_rows:
        return token_ids
    block = block_size(vocab_size)
    num_blocks = triton.cdiv(vocab_size, block)
    floats = torch.empty((num_rows, 3 * num_blocks + _HELD), dtype=torch.float32, device=device)
    tops, speeds, sums, held = (floats[:, place * num_blocks :] for place in range(4))
    winners = torch.empty((num_rows, num_blocks), dtype=torch.int32, device=device)
    mask_of, bits = (settings.slots, winners) if masks is None else masks
    common = (
        logits, logits.stride(0), vocab_size,
        settings.slots, settings.positions, settings.seeds, settings.temperature,
        settings.top_k, settings.top_p, settings.min_p,
        mask_of, bits, bits.stride(0),
    )  # fmt: skip
    sampling_scan[num_rows, triton.cdiv(num_blocks, _BLOCKS_PER_PROGRAM)](
        *common, tops, speeds, sums, floats.stride(0), winners,
        MASKED=masks is not None, NUM_BLOCKS=num_blocks, BLOCK=block, BLOCKS=_BLOCKS_PER_PROGRAM,
        num_warps=4,
    )  # fmt: skip
    sampling_decide[num_rows,](
        *common, tops, speeds, sums, held, floats.stride(0), winners,
        token_ids, table.tokens, table.tokens.stride(0), table.tokens.shape[1],
        MASKED=masks is not None, NUM_BLOCKS=num_blocks, BLOCK=block,
        BLOCKS=triton.next_power_of_2(num_blocks), TILE=max(_TILE // block, 1), HELD=_HELD, num_warps=16,
    )  # fmt: skip
    return token_ids
