"""Making a model's parameters and noting, in the same breath, which tensors of the checkpoint fill them."""

from __future__ import annotations

from collections.abc import Callable, Mapping

from rhizome_engine.checkpoint.model_config import ModelConfig
from rhizome_engine.kernels.base import Kernels
from rhizome_engine.layers.linear import Linear
from rhizome_engine.layers.rms_norm import RMSNorm
from rhizome_engine.parallel.group import RankGroup
from rhizome_engine.weights.format import WeightFormat
from rhizome_engine.weights.targets import MatrixTarget, ModelTargets, VectorTarget


class Parameters:
    """Makes layers; names are those of the checkpoint.

    Args:
        kernels: allocate the weights.
        format_of: module name and in_features → how its matrix is kept.
        config: of the model, or of one rank's share of it.
        group: the ranks; None for a whole model.

    Attributes:
        targets: of all that was made.
    """

    def __init__(
        self,
        kernels: Kernels,
        format_of: Callable[[str, int], WeightFormat],
        config: ModelConfig,
        group: RankGroup | None = None,
    ) -> None:
        self.kernels = kernels
        self.group = group
        self._format_of = format_of
        self._eps = config.rms_norm_eps
        self._plus_one = float(config.norm_plus_one)
        self.targets = ModelTargets()

    def linear(self, in_features: int, parts: Mapping[str, int], *, bias: bool = False) -> Linear:
        """Make a linear layer from modules of the checkpoint, name → rows."""
        weight_format = self._format_of(next(iter(parts)), in_features)
        linear = Linear(self.kernels, weight_format, in_features, parts, bias=bias)
        for name, start in linear.row_of.items():
            rows = linear.parts[name]
            self.targets.matrices[name] = MatrixTarget(linear.weight, start, rows)
            if linear.bias is not None:
                self.targets.vectors[f"{name}.bias"] = VectorTarget(linear.bias[start : start + rows])
        return linear

    def norm(self, name: str, size: int) -> RMSNorm:
        """Make a norm."""
        norm = RMSNorm(size, self._eps, device=self.kernels.device)
        self.targets.vectors[f"{name}.weight"] = VectorTarget(norm.gain, self._plus_one)
        return norm
