"""Groups of columns that are not side by side, as GPTQ makes them with `desc_act`.

Columns are quantised in the order of their importance there, and every `group_size` of them in that order
share a scale. The kernels know groups of neighbours only, and to reorder columns is to reorder the input of
the matrix at every step; so such a matrix is kept in floating point, exact where that is float32.
"""

from __future__ import annotations

import logging

import torch
from torch import Tensor

from rhizome_engine.checkpoint.errors import CheckpointError
from rhizome_engine.checkpoint.weight_files import WeightFiles

logger = logging.getLogger(__name__)


class ActivationOrder:
    """The group of each column, where a checkpoint says it.

    Args:
        files: the checkpoint.
        suffix: of the tensors that say it: "g_idx".
    """

    def __init__(self, files: WeightFiles, suffix: str) -> None:
        self._files = files
        self._suffix = suffix
        self._known: dict[str, Tensor | None] = {}
        self._told = False

    def tensor_names(self, module: str) -> list[str]:
        """Return the tensor that says it, if there is one."""
        name = f"{module}.{self._suffix}"
        return [name] if name in self._files else []

    def group_of(self, module: str, in_features: int, group_size: int) -> Tensor | None:
        """Return the group of each column, [in_features] int64; None where groups are neighbours.

        Raises:
            CheckpointError: a group does not exist.
        """
        if module not in self._known:
            self._known[module] = self._read(module, in_features, group_size)
        return self._known[module]

    def _read(self, module: str, in_features: int, group_size: int) -> Tensor | None:
        for name in self.tensor_names(module):
            group_of = self._files.tensor(name, [in_features], ("I32", "I64")).long()
            if torch.equal(group_of, torch.arange(in_features) // group_size):
                continue
            if (group_of < 0).all():  # written before the order is known, and left so without one
                continue
            if group_of.min() < 0 or group_of.max() >= in_features // group_size:
                raise CheckpointError(
                    f"{self._files.path_of(name)}: tensor {name} names groups without a scale"
                )
            if not self._told:
                self._told = True
                logger.warning(
                    "%s: columns were grouped by activation order (desc_act); such matrices are kept in "
                    "floating point and take its memory",
                    self._files.directory,
                )
            return group_of
        return None
