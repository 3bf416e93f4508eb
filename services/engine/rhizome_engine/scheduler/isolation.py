"""How much of a step other tenants may take while a small one is being served.

A tenant that runs many requests makes every step longer, and with it every answer of a tenant that runs
one. While tenants are that unequal, a step takes at most `max_tenant_slowdown` times as long as it would with
the smallest tenants alone; the others' rows take turns in what is left. Where a step hardly takes longer for
more rows, as on a GPU that waits for its memory, nobody is held back.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from rhizome_engine.batch import Int64
from rhizome_engine.scheduler.config import SchedulerConfig
from rhizome_engine.scheduler.step_times import StepTimes

_PROMPT_SHARE = 0.25
"""Of the others' time in a step, when some of them decode and some compute prompts."""


class Allowance(NamedTuple):
    """What the larger tenants may put into a step.

    Attributes:
        small: which rows belong to the smallest tenants, a mask over those given.
        rows: rows of the others that may decode.
        tokens: prompt tokens of the others.
        others: numbers of the tenants that are held back.
    """

    small: NDArray[np.bool_]
    rows: int
    tokens: int
    others: frozenset[int]


def allowance(
    tenants: Int64,
    missing: Int64,
    decodes: NDArray[np.bool_],
    config: SchedulerConfig,
    step_times: StepTimes,
) -> Allowance | None:
    """Decide what larger tenants may do in the next step; None where nobody is held back.

    Args:
        tenants: [n], the tenant of each row that has something to compute.
        missing: [n], tokens that each row has to catch up.
        decodes: [n], which rows decode.
        config: limits.
        step_times: what rows and tokens cost.
    """
    if not config.fairness or config.max_tenant_slowdown is None or len(tenants) < 3:
        return None
    numbers, index, rows = np.unique(tenants, return_inverse=True, return_counts=True)
    if rows.max() < rows.min() + 2 or (cost := step_times.cost()) is None:
        return None
    small = (rows == rows.min())[index]
    budget = config.max_step_tokens
    small_rows = int((small & decodes).sum())
    small_tokens = min(int(missing[small & ~decodes].sum()), budget)
    spare_s = (config.max_tenant_slowdown - 1.0) * cost.seconds(small_rows, small_tokens)
    other_rows = int((~small & decodes).sum())
    other_tokens = min(int(missing[~small & ~decodes].sum()), budget)
    if other_rows * cost.row_s + other_tokens * cost.token_s <= spare_s:
        return None
    for_rows_s = spare_s * (1.0 - _PROMPT_SHARE) if other_tokens else spare_s
    # Whoever is held back still goes on.
    fitting = other_rows if not cost.row_s else min(other_rows, max(int(for_rows_s / cost.row_s), 1))
    left_s = max(spare_s - fitting * cost.row_s, 0.0)
    tokens = budget if not cost.token_s else max(int(left_s / cost.token_s), 1)
    return Allowance(small, fitting, tokens, frozenset(numbers[rows > rows.min()].tolist()))
