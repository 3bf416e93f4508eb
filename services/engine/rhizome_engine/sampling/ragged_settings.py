"""Settings of which each slot has any number: biases, allowed tokens, bad words.

They are kept as one concatenation over all slots that have some. Both the concatenation and what a batch
needs of it change only with the slots, and in most steps a batch has the slots of the one before.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from rhizome_engine.batch import Int64


class RaggedSettings:
    """Tuples of arrays by slot; the arrays of a tuple have the same length.

    Args:
        max_rows: slots.
    """

    def __init__(self, max_rows: int) -> None:
        self.version = 0
        self._by_slot: dict[int, tuple[NDArray[Any], ...]] = {}
        self._row_of_slot = np.full(max_rows, -1, np.int64)
        self._joined: tuple[Int64, tuple[NDArray[Any], ...]] | None = None

    def __bool__(self) -> bool:
        """Whether any slot has some."""
        return bool(self._by_slot)

    def set(self, slot: int, *arrays: NDArray[Any]) -> None:
        """Give a slot its settings; empty arrays are none."""
        if len(arrays[0]):
            self._by_slot[slot] = arrays
            self._changed()
        else:
            self.clear(slot)

    def clear(self, slot: int) -> None:
        """Forget a slot's settings."""
        if self._by_slot.pop(slot, None) is not None:
            self._changed()

    def of(self, slots: Int64) -> tuple[NDArray[Any], ...] | None:
        """Return the settings of some slots, in any order.

        Returns:
            The place in `slots` that each belongs to, and the arrays, all of the same length; None where
            there are none.
        """
        if not self._by_slot:
            return None
        if self._joined is None:
            self._joined = self._join()
        owners, arrays = self._joined
        self._row_of_slot[slots] = np.arange(len(slots))
        rows = self._row_of_slot[owners]
        self._row_of_slot[slots] = -1
        here = np.flatnonzero(rows >= 0)
        return (rows[here], *(array[here] for array in arrays)) if len(here) else None

    def _changed(self) -> None:
        self.version += 1
        self._joined = None

    def _join(self) -> tuple[Int64, tuple[NDArray[Any], ...]]:
        lengths = [len(arrays[0]) for arrays in self._by_slot.values()]
        owners = np.repeat(np.fromiter(self._by_slot, np.int64), lengths)
        columns = zip(*self._by_slot.values(), strict=True)
        return owners, tuple(np.concatenate(column) for column in columns)
