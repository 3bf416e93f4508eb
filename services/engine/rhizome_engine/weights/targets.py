"""Where the tensors of a checkpoint belong in a model."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field

from torch import Tensor

from rhizome_engine.weights.base import Weight


@dataclass(frozen=True, slots=True)
class MatrixTarget:
    """Rows of a matrix that one module of the checkpoint fills.

    Attributes:
        weight: the matrix.
        start: first row.
        rows: how many.
    """

    weight: Weight
    start: int
    rows: int

    @property
    def shape(self) -> list[int]:
        """What the checkpoint's tensor must look like."""
        return [self.rows, self.weight.in_features]


@dataclass(frozen=True, slots=True)
class VectorTarget:
    """A gain or a bias.

    Attributes:
        tensor: the (part of a) parameter, filled in place.
        plus: added to what the checkpoint holds.
    """

    tensor: Tensor
    plus: float = 0.0


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
    def num_parameters(self) -> int:
        """Elements of all of them."""
        matrices = sum(target.rows * target.weight.in_features for target in self.matrices.values())
        return matrices + sum(target.tensor.numel() for target in self.vectors.values())

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
