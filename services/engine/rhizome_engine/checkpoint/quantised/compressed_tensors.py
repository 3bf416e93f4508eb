"""compressed-tensors: integers as bytes or packed along the input, rows as they are in the matrix.

weight             int8  [rows, in_features]                     "int-quantized", "naive-quantized"
weight_packed      int32 [rows, in_features * bits / 32]         "pack-quantized"; 2 ** (bits - 1) was added
weight_scale             [rows, groups]
weight_zero_point  int8  [rows, groups], or int32 [rows * bits / 32, groups] where packed; only if asymmetric
weight_g_idx       int32 [in_features]                           only if ordered by activations
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from rhizome_engine.checkpoint.errors import CheckpointError
from rhizome_engine.checkpoint.json_fields import JsonFields
from rhizome_engine.checkpoint.quantised.activation_order import ActivationOrder
from rhizome_engine.checkpoint.quantised.base import SCALE_TYPES, grouped_rows, unpack, whole_groups
from rhizome_engine.checkpoint.weight_files import WeightFiles, row_spans
from rhizome_engine.weights.base import QuantisedRows
from rhizome_engine.weights.choose import Quantization
from rhizome_engine.weights.format import Grouped, Int8, WeightFormat

_FORMATS = ("pack-quantized", "int-quantized", "naive-quantized")


@dataclass(frozen=True, slots=True)
class Scheme:
    """How a group of modules is quantised.

    Attributes:
        targets: names, "re:" and a pattern, or "Linear".
        bits: of an element.
        group_size: columns that share a scale; None for all of a row.
        one_scale: all rows share a scale as well.
        symmetric: zero is the integer 0.
        activations: are int8 as well.
    """

    targets: tuple[str, ...]
    bits: int
    group_size: int | None
    one_scale: bool
    symmetric: bool
    activations: bool


class CompressedTensors:
    """See `QuantisedFormat`.

    Args:
        fields: `quantization_config`.
        files: the checkpoint.

    Raises:
        CheckpointError: a variant that is not implemented.
    """

    name = "compressed-tensors"

    def __init__(self, fields: JsonFields, files: WeightFiles) -> None:
        self._files = files
        self._order = ActivationOrder(files, "weight_g_idx")
        self._ignored = tuple(map(str, fields.values.get("ignore", ())))
        if fields.values.get("transform_config"):
            raise fields.bad("transform_config", "absent: transformed weights are not implemented")
        sparsity = fields.section("sparsity_config")
        if sparsity is not None and sparsity.values.get("format", "dense") != "dense":
            raise sparsity.bad("format", "dense")
        groups = fields.section("config_groups")
        if groups is None or not groups.values:
            raise fields.bad("config_groups", "an object with at least one group")
        self._schemes = [
            _read_scheme(section, str(fields.values.get("format", "")))
            for section in map(groups.section, groups.values)
            if section is not None
        ]
        bits = max(scheme.bits for scheme in self._schemes)
        self.quantization: Quantization = "int8" if bits == 8 else "int4"

    def holds(self, module: str) -> bool:
        """See `QuantisedFormat.holds`."""
        name = f"{module}.weight"
        return f"{name}_packed" in self._files or (
            name in self._files and self._files.entry(name).dtype == "I8"
        )

    def format_of(self, module: str, in_features: int) -> WeightFormat | None:
        """See `QuantisedFormat.format_of`."""
        if not self.holds(module):
            return None
        scheme = self._scheme_of(module)
        group_size = whole_groups(module, in_features, scheme.group_size)
        if self._order.group_of(module, in_features, group_size) is not None:
            return None
        return Int8() if scheme.activations else Grouped(scheme.bits, group_size)

    def tensor_names(self, module: str) -> list[str]:
        """See `QuantisedFormat.tensor_names`."""
        weight = f"{module}.weight"
        packed = f"{weight}_packed" in self._files
        optional = (f"{weight}_zero_point", f"{weight}_shape")
        found = [name for name in optional if name in self._files]
        first = f"{weight}_packed" if packed else weight
        return [first, f"{weight}_scale", *found, *self._order.tensor_names(module)]

    def row_blocks(self, module: str, shape: Sequence[int]) -> Iterator[tuple[int, QuantisedRows]]:
        """See `QuantisedFormat.row_blocks`."""
        rows, in_features = shape
        scheme, weight = self._scheme_of(module), f"{module}.weight"
        group_size = whole_groups(module, in_features, scheme.group_size)
        groups, middle = in_features // group_size, 1 << (scheme.bits - 1)
        scales = self._scales(f"{weight}_scale", scheme, rows, groups)
        zeros = torch.tensor(middle).expand(rows, 1)
        if not scheme.symmetric:
            zeros = self._zeros(weight, scheme, rows, groups) + middle
        group_of = self._order.group_of(module, in_features, group_size)
        packed = f"{weight}_packed" in self._files
        if packed:
            words = math.ceil(in_features * scheme.bits / 32)
            stored = self._files.tensor(f"{weight}_packed", [rows, words], ["I32"])
        else:
            stored = self._files.tensor(weight, shape, ["I8"])
        for start, stop in row_spans(shape):
            block, scale = stored[start:stop], scales[start:stop]
            q = unpack(block, scheme.bits)[:, :in_features] if packed else block.view(torch.uint8) ^ 128
            if not packed and scheme.bits == 4:
                q = q - (128 - middle)
            if scheme.activations:
                yield start, QuantisedRows((q ^ 128).view(torch.int8), scale.float(), None)
            else:
                yield start, grouped_rows(q.contiguous(), scale, zeros[start:stop], group_of)

    def _scheme_of(self, module: str) -> Scheme:
        if not any(_matches(pattern, module) for pattern in self._ignored):
            for scheme in self._schemes:
                if any(_matches(target, module) for target in scheme.targets):
                    return scheme
        raise CheckpointError(
            f"{self._files.directory}: the safetensors hold {module} as integers, but quantization_config in "
            "config.json has no group for it, or ignores it"
        )

    def _scales(self, name: str, scheme: Scheme, rows: int, groups: int) -> Tensor:
        if scheme.one_scale:
            return self._files.tensor(name, [1], SCALE_TYPES).view(1, 1).expand(rows, 1)
        return self._files.tensor(name, [rows, groups], SCALE_TYPES)

    def _zeros(self, weight: str, scheme: Scheme, rows: int, groups: int) -> Tensor:
        """Return signed zero points, [rows, groups]."""
        name, bits = f"{weight}_zero_point", scheme.bits
        if scheme.one_scale:
            return self._files.tensor(name, [1], ["I8"]).int().view(1, 1).expand(rows, 1)
        if self._files.entry(name).dtype == "I8":
            return self._files.tensor(name, [rows, groups], ["I8"]).int()
        packed = self._files.tensor(name, [math.ceil(rows * bits / 32), groups], ["I32"])
        return unpack(packed.t().contiguous(), bits)[:, :rows].t().int() - (1 << (bits - 1))


def _read_scheme(group: JsonFields, checkpoint_format: str) -> Scheme:
    layout = group.values.get("format", checkpoint_format)
    if layout not in _FORMATS:
        raise CheckpointError(
            f"{group.where}: format {layout!r} is not supported; known: {', '.join(_FORMATS)}"
        )
    weights = group.section("weights")
    if weights is None:
        raise group.bad("weights", "an object")
    bits = weights.integer("num_bits")
    if weights.values.get("type", "int") != "int" or bits not in (4, 8):
        raise CheckpointError(
            f"{weights.where}: {bits} bits of type {weights.values.get('type', 'int')!r} are not supported; "
            "known: int of 4 or 8 bits"
        )
    strategy = weights.values.get("strategy", "group" if "group_size" in weights else "tensor")
    if strategy not in ("tensor", "channel", "group"):
        raise weights.bad("strategy", "tensor, channel or group")
    symmetric = weights.flag("symmetric", True)
    activations = group.section("input_activations")
    if activations is not None:
        _check_activations(activations)
        if bits != 8 or strategy == "group" or not symmetric:
            raise CheckpointError(
                f"{group.where}: beside quantised activations, weights must be symmetric and of 8 bits, with "
                "one scale per row"
            )
    if group.section("output_activations") is not None:
        raise group.bad("output_activations", "absent")
    targets: Any = group.values.get("targets", ["Linear"])
    return Scheme(
        targets=tuple(map(str, targets)),
        bits=bits,
        group_size=weights.integer("group_size") if strategy == "group" else None,
        one_scale=strategy == "tensor",
        symmetric=symmetric,
        activations=activations is not None,
    )


def _check_activations(fields: JsonFields) -> None:
    """Refuse all but int8 that is rounded per token while serving."""
    if (
        fields.values.get("type", "int") != "int"
        or fields.integer("num_bits") != 8
        or fields.values.get("strategy", "token") != "token"
        or fields.values.get("dynamic") is not True
    ):
        raise CheckpointError(
            f"{fields.where}: only int8 activations that are rounded per token while serving are supported "
            '(num_bits 8, type "int", strategy "token", dynamic true)'
        )


def _matches(pattern: str, module: str) -> bool:
    if pattern.startswith("re:"):
        return re.match(pattern.removeprefix("re:"), module) is not None
    return pattern in ("Linear", module)
