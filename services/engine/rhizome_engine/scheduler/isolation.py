"""How often large tenants join the steps of a small one.

A tenant that runs many requests makes every step longer, and with it every answer of a tenant that runs one.
While tenants are that unequal, the larger ones take part only so often that the small ones' steps take
`max_tenant_slowdown` times as long on average as they would alone:

    small alone   |s|s|s|s|         |s|s|s|s|         |s|...
    all together           |ssLLLLLL|        |ssLLLLLL|

An account keeps the time that the larger ones may cost. Steps without them are measured and pay in; steps
with them are measured and paid for, out of savings. Nothing is assumed about what makes a step long. Where it
hardly takes longer for more rows, as on a GPU that waits for its memory, nobody is held back.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from rhizome_engine.batch import Int64
from rhizome_engine.scheduler.config import SchedulerConfig

_SMOOTHING = 0.2
_OUTLIER = 3.0
_REFRESH_STEPS = 64
"""After so many steps together, one without the larger tenants tells anew how long that takes."""
_MAX_SAVED_STEPS = 1.0
_MAX_DEBT_STEPS = 50.0
"""In steps of the small ones: however long one together took, the larger tenants are out for a while only."""
_MAX_PROMPT_STEPS = 4.0
"""Prompts of larger tenants may make a step longer by so many steps of the small ones."""
_MIN_PROMPT_TOKENS = 32


@dataclass(frozen=True, slots=True)
class Turn:
    """What larger tenants do in a step.

    Attributes:
        small: which rows belong to the smallest tenants, a mask over those given.
        others: numbers of the larger tenants.
        together: whether the larger ones take part.
        others_tokens: most prompt tokens of theirs.
        small_tokens: prompt tokens of the small ones, as far as a step can hold them.
        charged_s: taken from the account before the step was measured.
    """

    small: NDArray[np.bool_]
    others: frozenset[int]
    together: bool
    others_tokens: int
    small_tokens: int
    charged_s: float


class TenantIsolation:
    """Decides and keeps the account.

    Args:
        config: limits.
    """

    def __init__(self, config: SchedulerConfig) -> None:
        self._slowdown = config.max_tenant_slowdown if config.fairness else None
        self._budget = config.max_step_tokens
        self._account_s = 0.0
        self._small_s: float | None = None
        self._together_s: float | None = None
        self._token_s: float | None = None
        self._steps_together = 0
        self._unknown_steps = 0

    def choose(self, tenants: Int64, missing: Int64, decodes: NDArray[np.bool_]) -> Turn | None:
        """Decide about the next step; None where tenants are about equal.

        Args:
            tenants: [n], the tenant of each row that has something to compute.
            missing: [n], tokens that each row has to catch up.
            decodes: [n], which rows decode.
        """
        if self._slowdown is None or len(tenants) < 3:
            return None
        numbers, index, rows = np.unique(tenants, return_inverse=True, return_counts=True)
        if rows.max() < rows.min() + 2:
            return None
        smallest = rows == rows.min()
        small = smallest[index]
        small_tokens = min(int(missing[small & ~decodes].sum()), self._budget)
        # Beside so many prompt tokens a few rows cost next to nothing, and it would be a long absence.
        together = self._may_join(small_tokens) or 2 * small_tokens >= self._budget
        charged_s = 0.0
        if together:
            self._steps_together += 1
            charged_s = self._expected_cost_s(small_tokens)
            self._account_s -= charged_s
        return Turn(
            small=small,
            others=frozenset(numbers[~smallest].tolist()),
            together=together,
            others_tokens=self._others_tokens() if together else 0,
            small_tokens=small_tokens,
            charged_s=charged_s,
        )

    def note(self, turn: Turn | None, tokens: int, seconds: float) -> None:
        """Learn from a step.

        Args:
            turn: what was decided for it.
            tokens: prompt tokens in it.
            seconds: how long it took.
        """
        if tokens >= _MIN_PROMPT_TOKENS:
            self._token_s = _smooth(self._token_s, seconds / tokens)
        if turn is None or self._slowdown is None:
            return
        if not turn.together:
            if not tokens:
                self._small_s = _smooth(self._small_s, seconds)
            self._settle((self._slowdown - 1.0) * seconds, seconds)
            return
        if not tokens:
            self._together_s = _smooth(self._together_s, seconds)
        alone_s = self._alone_s(turn.small_tokens)
        if alone_s is not None:
            self._settle(turn.charged_s + self._slowdown * alone_s - seconds, alone_s)

    def _expected_cost_s(self, small_tokens: int) -> float:
        """What a step together will take from the account."""
        if self._small_s is None or self._together_s is None or self._slowdown is None or small_tokens:
            return 0.0
        cost_s = self._together_s - self._slowdown * self._small_s
        return min(max(cost_s, 0.0), _MAX_DEBT_STEPS * self._small_s)

    def _settle(self, amount_s: float, alone_s: float) -> None:
        """Pay into the account; neither savings nor debts outlast their cause for long."""
        most = max(_MAX_SAVED_STEPS * alone_s, self._expected_cost_s(0))
        self._account_s = min(max(self._account_s + amount_s, -_MAX_DEBT_STEPS * alone_s), most)

    def _alone_s(self, small_tokens: int) -> float | None:
        """How long a step of the small tenants takes without the others; None while that is not known."""
        if not small_tokens:
            return self._small_s
        if self._token_s is None:
            return None
        return max(self._small_s or 0.0, small_tokens * self._token_s)

    def _may_join(self, small_tokens: int) -> bool:
        if self._alone_s(small_tokens) is None:
            # So long as it cannot be measured, the others wait for every second step only.
            self._unknown_steps += 1
            return self._unknown_steps % 2 == 0
        if self._account_s < self._expected_cost_s(small_tokens):  # saved before it is spent
            return False
        if self._steps_together >= _REFRESH_STEPS:
            self._steps_together = 0
            return False
        return True

    def _others_tokens(self) -> int:
        if self._small_s is None or not self._token_s:
            return self._budget
        return max(int(_MAX_PROMPT_STEPS * self._small_s / self._token_s), 1)


def _smooth(before: float | None, now: float) -> float:
    """A moving mean on which a single slow step has little weight."""
    if before is None:
        return now
    return before + _SMOOTHING * (min(now, _OUTLIER * before) - before)
