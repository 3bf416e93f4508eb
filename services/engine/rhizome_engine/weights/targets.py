"""Where the tensors of a checkpoint belong in a model."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from rhizome_engine.weights.base import Weight
from rhizome_engine.weights.share import Share, Span


@dataclass(frozen=True, slots=True)
class MatrixTarget:
    """Rows of a matrix that one module of the checkpoint fills.

    Attributes:
        weight: the matrix.
        start: first row.
        rows: how many.
        share: which part of the module they are; None for all of it.
    """

    weight: Weight
    start: int
    rows: int
    share: Share | None = None

    @property
    def shape(self) -> list[int]:
        """What the checkpoint's tensor must look like."""
        return [self.rows, self.weight.in_features] if self.share is None else list(self.share.shape)

    @property
    def wanted(self) -> Sequence[Span] | None:
        """The rows of the checkpoint's tensor that are needed; None for all."""
        return None if self.share is None else self.share.rows

    @property
    def columns(self) -> slice:
        """The columns of the checkpoint's tensor that are needed."""
        return slice(None) if self.share is None else slice(*self.share.columns)

    def places(self, start: int, count: int) -> Iterator[tuple[int, slice]]:
        """Say where a block of the checkpoint's rows goes: rows of `weight`, and which of the block's."""
        if self.share is None:
            yield self.start + start, slice(None)
            return
        for row, part in self.share.places(start, count):
            yield self.start + row, part


@dataclass(frozen=True, slots=True)
class VectorTarget:
    """A gain or a bias.

    Attributes:
        tensor: the (part of a) parameter, filled in place.
        plus: added to what the checkpoint holds.
        share: of the matrix that it is the bias of; None where all of the vector is needed.
    """

    tensor: Tensor
    plus: float = 0.0
    share: Share | None = None

    @property
    def shape(self) -> list[int]:
        """What the checkpoint's tensor must look like."""
        return list(self.tensor.shape) if self.share is None else [self.share.shape[0]]

    @property
    def wanted(self) -> Sequence[Span] | None:
        """As of a matrix."""
        return None if self.share is None else self.share.rows

    def places(self, start: int, count: int) -> Iterator[tuple[int, slice]]:
        """As of a matrix."""
        return iter([(start, slice(None))]) if self.share is None else self.share.places(start, count)


@dataclass(frozen=True, slots=True)
class ModelTargets:
    """Everything that a checkpoint has to fill.

    Attributes:
        matrices: by the name of the module, without ".weight": formats differ in what comes after it.
        vectors: by the name of the tensor.
    """

    matrices: dict[str, MatrixTarget] = field(default_factory=dict)
    vectors: dict[str, VectorTarget] = field(default_factory=dict)

    @property
    def device(self) -> torch.device:
        """Where all of them are; every model has vectors."""
        return next((target.tensor.device for target in self.vectors.values()), torch.device("cpu"))

    @property
    def num_parameters(self) -> int:
        """Elements of all of them, those on other ranks included."""
        shapes = [target.shape for target in self.matrices.values()]
        shapes += [target.shape for target in self.vectors.values()]
        return sum(map(math.prod, shapes))

    @property
    def num_bytes(self) -> int:
        """Memory that they take in their formats."""
        weights = {id(target.weight): target.weight.num_bytes for target in self.matrices.values()}
        return sum(weights.values()) + sum(target.tensor.nbytes for target in self.vectors.values())


def format_summary(targets: ModelTargets) -> str:
    """Say how matrices are kept, the format that most parameters have first: "int4-g128, int8-g128"."""
    parameters: Counter[str] = Counter()
    for target in targets.matrices.values():
        parameters[str(target.weight.format)] += target.rows * target.weight.in_features
    return ", ".join(name for name, _ in parameters.most_common())
