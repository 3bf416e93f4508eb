"""The protocol of a matrix that fills itself from a checkpoint, row block by row block."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

from torch import Tensor

from rhizome_engine.weights.format import WeightFormat


@dataclass(frozen=True, slots=True)
class QuantisedRows:
    """Rows that are rounded already: an element is `scale * q + offset` of its group.

    Attributes:
        q: [rows, in_features] uint8 for `Grouped`; int8 for `Int8`; float8_e4m3fn for `Fp8`.
        scales: [rows, groups] float32; one group for `Int8` and `Fp8`.
        offsets: [rows, groups] float32, None where all are 0 (`Int8`, `Fp8`).
    """

    q: Tensor
    scales: Tensor
    offsets: Tensor | None


class Weight(Protocol):
    """A matrix in the layout of the kernels that made it.

    Attributes:
        format: how it is kept.
        out_features: rows.
        in_features: columns.
        num_bytes: memory it takes, scales included.
    """

    format: WeightFormat
    out_features: int
    in_features: int
    num_bytes: int

    def fill(self, start: int, rows: Tensor) -> None:
        """Store floating-point rows [m, in_features] at row `start`, quantising where the format says so."""
        ...

    def fill_quantised(self, start: int, rows: QuantisedRows) -> None:
        """Store rows that are rounded already, as they are, at row `start`.

        Raises:
            TypeError: the format is dense.
        """
        ...

    def to_dense(self) -> Tensor:
        """Return what the matrix stands for, float32 [out_features, in_features]; for tests and reports."""
        ...
