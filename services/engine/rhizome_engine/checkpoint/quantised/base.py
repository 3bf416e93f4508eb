"""The protocol of a quantised checkpoint, and what the formats share: words, groups of columns."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Protocol

import torch
from torch import Tensor

from rhizome_engine.checkpoint.errors import CheckpointError
from rhizome_engine.weights.base import QuantisedRows
from rhizome_engine.weights.choose import Quantization
from rhizome_engine.weights.format import WeightFormat

SCALE_TYPES = ("F16", "BF16", "F32")


def whole_groups(module: str, in_features: int, group_size: int | None) -> int:
    """Return the size of a module's groups, None and -1 being all of a row.

    Raises:
        CheckpointError: they do not fill a row.
    """
    size = in_features if group_size in (None, -1) else group_size
    if size is None or size < 1 or in_features % size:
        raise CheckpointError(f"{module} has {in_features} columns, which are no whole groups of {size}")
    return size


class QuantisedFormat(Protocol):
    """How a checkpoint holds matrices as integers.

    Attributes:
        name: as `config.json` spells it.
        quantization: what comes nearest to it among our own settings.
    """

    name: str
    quantization: Quantization

    def holds(self, module: str) -> bool:
        """Whether a module's matrix is integers; others are floating point as anywhere."""
        ...

    def format_of(self, module: str, in_features: int) -> WeightFormat | None:
        """Return the format that keeps a module's matrix as it is; None where only floating point does.

        Raises:
            CheckpointError: a tensor is missing, or of another shape or type.
        """
        ...

    def tensor_names(self, module: str) -> list[str]:
        """Return the tensors that make up a module's matrix."""
        ...

    def row_blocks(
        self, module: str, shape: Sequence[int], wanted: Sequence[tuple[int, int]] | None = None
    ) -> Iterator[tuple[int, QuantisedRows]]:
        """Read a module's matrix as (first row, rows); `format_of` says what fits them.

        Args:
            module: one that is held.
            shape: of the matrix, [rows, in_features].
            wanted: spans of the rows that are needed; None for all. Others may come as well.

        Raises:
            CheckpointError: a tensor is missing, or of another shape or type; it is named.
        """
        ...


def unpack(packed: Tensor, bits: int) -> Tensor:
    """Return the unsigned integers in words, lowest bits first.

    Args:
        packed: [n, words] int32, contiguous, on a little-endian machine.
        bits: 4 or 8.

    Returns:
        [n, words * 32 / bits] uint8
    """
    octets = packed.view(torch.uint8)
    if bits == 8:
        return octets
    return torch.stack((octets & 15, octets >> 4), dim=-1).flatten(1)


def grouped_rows(q: Tensor, scales: Tensor, zeros: Tensor, group_of: Tensor | None = None) -> QuantisedRows:
    """Return rows whose elements are `(q - zero) * scale`.

    Args:
        q: [rows, in_features] uint8.
        scales: [rows, groups].
        zeros: [rows, groups] of integers, or one integer for all.
        group_of: [in_features], the group of each column, where they are not side by side; each column
            becomes a group of its own then.
    """
    scales = scales.float()
    offsets = -zeros.float() * scales
    if group_of is not None:
        scales, offsets = scales[:, group_of], offsets[:, group_of]
    return QuantisedRows(q, scales.contiguous(), offsets.contiguous())


def dequantise(rows: QuantisedRows) -> Tensor:
    """Return what rows stand for, float32 [rows, in_features]."""
    groups = rows.scales.shape[1]
    dense = rows.q.float().view(len(rows.q), groups, -1) * rows.scales[..., None]
    if rows.offsets is not None:
        dense += rows.offsets[..., None]
    return dense.flatten(1)
