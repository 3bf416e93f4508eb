"""Which part of a checkpoint's matrix a model keeps that is spread over several ranks."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace

from rhizome_engine.weights.base import QuantisedRows
from rhizome_engine.weights.format import Grouped, WeightFormat

Span = tuple[int, int]
"""First, and one past the last."""


@dataclass(frozen=True, slots=True)
class Share:
    """The part of a matrix, or of the bias beside it, that one rank keeps.

    Attributes:
        shape: of the whole matrix: rows, columns.
        rows: spans of rows, in the order in which the rank has them.
        columns: the span of columns.
    """

    shape: tuple[int, int]
    rows: tuple[Span, ...]
    columns: Span

    @property
    def num_columns(self) -> int:
        """Columns of the rank."""
        return self.columns[1] - self.columns[0]

    @property
    def cuts_columns(self) -> bool:
        """Whether a row of the matrix lies on several ranks, whose products have to be added."""
        return self.num_columns != self.shape[1]

    def places(self, start: int, count: int) -> Iterator[tuple[int, slice]]:
        """Say where a block of the whole matrix's rows goes.

        Args:
            start: the block's first row.
            count: its rows.

        Yields:
            A row of the rank's part, and which rows of the block belong there and below.
        """
        row = 0
        for first, stop in self.rows:
            low, high = max(first, start), min(stop, start + count)
            if low < high:
                yield row + low - first, slice(low - start, high - start)
            row += stop - first

    def kept_format(self, module: str, stored: WeightFormat | None) -> WeightFormat | None:
        """Return what keeps the rank's columns as they are, given what keeps whole rows so.

        Raises:
            ValueError: columns that share a scale would lie on two ranks.
        """
        if not isinstance(stored, Grouped) or not self.cuts_columns:
            return stored
        if stored.group_size == self.shape[1]:  # one scale per row is one scale for each part of it
            return replace(stored, group_size=self.num_columns)
        if any(column % stored.group_size for column in self.columns):
            raise ValueError(
                f"{module} has {self.shape[1]} columns in groups of {stored.group_size}, and a rank would "
                f"get {self.num_columns} of them, which are no whole groups: use fewer ranks, or start from "
                "the checkpoint that this one was made from"
            )
        return stored


def cut_quantised(rows: QuantisedRows, part: slice, columns: slice) -> QuantisedRows:
    """Return some rows and columns; the columns are whole groups, or a part of the only one."""
    groups = rows.scales.shape[1]
    of_scales = slice(None)
    if groups > 1 and columns != slice(None):
        size = rows.q.shape[1] // groups
        of_scales = slice(columns.start // size, columns.stop // size)
    offsets = None if rows.offsets is None else rows.offsets[part, of_scales]
    return QuantisedRows(rows.q[part, columns], rows.scales[part, of_scales], offsets)
