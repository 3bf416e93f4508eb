"""How long a step takes, learned from the steps themselves.

A step costs something in itself (weights are read, kernels are launched), something per row that decodes and
something per prompt token. The three are fitted by least squares over the last few hundred steps; older ones
fade out, so the estimate follows contexts that grow and neighbours that come and go.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

_MEMORY_STEPS = 300
_MIN_STEPS = 6
_SKIPPED_STEPS = 4
"""The first steps of a process pay for what is made on first use."""
_REFIT_STEPS = 16
_OUTLIER = 4.0
_MAX_OUTLIERS = 5
"""A step that takes so many times what was expected is not learned from, unless several come in a row."""


class StepCost(NamedTuple):
    """Seconds: of any step, and of each decoding row and prompt token in it."""

    fixed_s: float
    row_s: float
    token_s: float

    def seconds(self, rows: int, tokens: int) -> float:
        """Expected duration of a step."""
        return self.fixed_s + rows * self.row_s + tokens * self.token_s


class StepTimes:
    """A fading least-squares fit."""

    def __init__(self) -> None:
        self._squares = np.zeros((3, 3))
        self._products = np.zeros(3)
        self._seen = 0
        self._outliers = 0
        self._expected: StepCost | None = None

    def note(self, rows: int, tokens: int, seconds: float) -> None:
        """Learn from a step with so many decoding rows and prompt tokens."""
        self._seen += 1
        if self._seen <= _SKIPPED_STEPS:
            return
        if self._seen % _REFIT_STEPS == 0:
            self._expected = self.cost()
        expected = self._expected
        if expected is not None and seconds > _OUTLIER * expected.seconds(rows, tokens):
            self._outliers += 1
            if self._outliers < _MAX_OUTLIERS:
                return
        self._outliers = 0
        features = np.array([1.0, rows, tokens])
        fade = 1.0 - 1.0 / _MEMORY_STEPS
        self._squares = self._squares * fade + features[:, None] * features
        self._products = self._products * fade + features * seconds

    def cost(self) -> StepCost | None:
        """The fit, None while too little is known."""
        if self._seen < _SKIPPED_STEPS + _MIN_STEPS:
            return None
        # What was never seen to vary is drawn towards 0 rather than towards anything.
        ridge = np.diag(1e-6 * np.diag(self._squares) + 1e-9)
        fixed, row, token = np.linalg.solve(self._squares + ridge, self._products).tolist()
        return StepCost(max(fixed, 0.0), max(row, 0.0), max(token, 0.0))
