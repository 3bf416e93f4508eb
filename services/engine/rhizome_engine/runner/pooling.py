"""Hidden states to vectors, over as many steps as a prompt takes.

    step 1    | tokens 0 .. 511    |   sum[slot]  = their sum
    step 2    | tokens 512 .. 1023 |   sum[slot] += their sum
    step 3    | tokens 1024 .. 1100|   vector     = (sum[slot] + their sum) / 1101

Sums are kept in float64, so that a vector does not depend on how its prompt was cut.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from rhizome_engine.batch import Batch, PooledRow
from rhizome_engine.embedding.pooling import Pooling


class PooledSums:
    """What was seen of prompts that are not complete yet, by slot; a cancelled one's stays until the next."""

    def __init__(self) -> None:
        self._sums: dict[int, Tensor] = {}

    def pool(self, hidden: Tensor, batch: Batch, final_norm: Callable[[Tensor], Tensor]) -> Tensor | None:
        """Take in a step, in the order of steps.

        Args:
            hidden: [num_tokens, hidden_size], before the final norm.
            batch: the step.
            final_norm: makes the hidden states that are pooled.

        Returns:
            [n, hidden_size] float32 on the device, one vector per row of `batch.pooled` that ends; None where
            none does.
        """
        if not batch.pooled:
            return None
        spans = [_span(row, batch) for row in batch.pooled]
        states = final_norm(torch.cat([hidden[start:end] for start, end in spans]))
        parts = torch.split(states, [end - start for start, end in spans])
        vectors = []
        for row, part in zip(batch.pooled, parts, strict=True):
            total = part.sum(0, dtype=torch.float64)
            if not row.begins and row.params.pooling is not Pooling.LAST_TOKEN:
                total += self._sums.pop(row.slot)
            if not row.ends:
                self._sums[row.slot] = total
                continue
            if row.params.pooling is Pooling.MEAN:
                total /= int(batch.context_len[row.row])
            if row.params.normalize:
                total /= total.norm().clamp_min(torch.finfo(torch.float64).tiny)
            vectors.append(total)
        return torch.stack(vectors).float() if vectors else None


def _span(row: PooledRow, batch: Batch) -> tuple[int, int]:
    """Which tokens of the step count for a row; of CLS's later rows none does."""
    start, end = int(batch.query_start[row.row]), int(batch.query_start[row.row + 1])
    match row.params.pooling:
        case Pooling.MEAN:
            return start, end
        case Pooling.LAST_TOKEN:
            return end - 1, end
        case Pooling.CLS:
            return start, start + row.begins
