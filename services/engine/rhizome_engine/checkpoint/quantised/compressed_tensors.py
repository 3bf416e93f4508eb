"""compressed-tensors: bytes, or integers packed along the input, rows as they are in the matrix.

weight             int8  [rows, in_features]                     "int-quantized", "naive-quantized"
weight             e4m3  [rows, in_features]                     "float-quantized", "naive-quantized"
weight_packed      int32 [rows, in_features * bits / 32]         "pack-quantized"; 2 ** (bits - 1) was added
weight_scale             [rows, groups]
weight_zero_point  int8  [rows, groups], or int32 [rows * bits / 32, groups] where packed; only if asymmetric
weight_g_idx       int32 [in_features]                           only if ordered by activations
input_scale              [1]                                     only if activations have a fixed scale
"""

from __future__ import annotations

import logging
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
from rhizome_engine.weights.format import Fp8, Grouped, Int8, WeightFormat

logger = logging.getLogger(__name__)

_FORMATS = ("pack-quantized", "int-quantized", "naive-quantized", "float-quantized")
_BYTES = {"int": "I8", "float": "F8_E4M3"}


@dataclass(frozen=True, slots=True)
class Scheme:
    """How a group of modules is quantised.

    Attributes:
        targets: names, "re:" and a pattern, or "Linear".
        bits: of an element.
        group_size: columns that share a scale; None for all of a row.
        one_scale: all rows share a scale as well.
        symmetric: zero is the integer 0.
        activations: are rounded to 8 bits as well.
        floating: elements are e4m3, not integers.
    """

    targets: tuple[str, ...]
    bits: int
    group_size: int | None
    one_scale: bool
    symmetric: bool
    activations: bool
    floating: bool = False


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
        if any(scheme.floating for scheme in self._schemes):
            self.quantization = "fp8"
        if any(name.endswith(".input_scale") for name in files):
            logger.info(
                "%s: fixed scales of activations are left unused; activations are rounded per token",
                files.directory,
            )

    def holds(self, module: str) -> bool:
        """See `QuantisedFormat.holds`."""
        name = f"{module}.weight"
        return f"{name}_packed" in self._files or (
            name in self._files and self._files.entry(name).dtype in _BYTES.values()
        )

    def format_of(self, module: str, in_features: int) -> WeightFormat | None:
        """See `QuantisedFormat.format_of`."""
        if not self.holds(module):
            return None
        scheme = self._scheme_of(module)
        group_size = whole_groups(module, in_features, scheme.group_size)
        if self._order.group_of(module, in_features, group_size) is not None:
            return None
        if scheme.floating:  # where activations are to stay as they are, matrices become floating point
            return Fp8() if scheme.activations else None
        return Int8() if scheme.activations else Grouped(scheme.bits, group_size)

    def tensor_names(self, module: str) -> list[str]:
        """See `QuantisedFormat.tensor_names`."""
        weight = f"{module}.weight"
        packed = f"{weight}_packed" in self._files
        optional = (f"{weight}_zero_point", f"{weight}_shape", f"{module}.input_scale")
        found = [name for name in optional if name in self._files]
        first = f"{weight}_packed" if packed else weight
        return [first, f"{weight}_scale", *found, *self._order.tensor_names(module)]

    def row_blocks(
        self, module: str, shape: Sequence[int], wanted: Sequence[tuple[int, int]] | None = None
    ) -> Iterator[tuple[int, QuantisedRows]]:
        """See `QuantisedFormat.row_blocks`."""
        rows, in_features = shape
        scheme, weight = self._scheme_of(module), f"{module}.weight"
        group_size = whole_groups(module, in_features, scheme.group_size)
        groups, middle = in_features // group_size, 1 << (scheme.bits - 1)
        scales = self._scales(f"{weight}_scale", scheme, rows, groups)
        if scheme.floating:
            yield from self._floating_blocks(weight, shape, scales, wanted)
            return
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
        for start, stop in row_spans(shape, wanted=wanted):
            block, scale = stored[start:stop], scales[start:stop]
            q = unpack(block, scheme.bits)[:, :in_features] if packed else block.view(torch.uint8) ^ 128
            if not packed and scheme.bits == 4:
                q = q - (128 - middle)
            if scheme.activations:
                yield start, QuantisedRows((q ^ 128).view(torch.int8), scale.float(), None)
            else:
                yield start, grouped_rows(q.contiguous(), scale, zeros[start:stop], group_of)

    def _floating_blocks(
        self, weight: str, shape: Sequence[int], scales: Tensor, wanted: Sequence[tuple[int, int]] | None
    ) -> Iterator[tuple[int, QuantisedRows]]:
        stored = self._files.tensor(weight, shape, ["F8_E4M3"])
        for start, stop in row_spans(shape, wanted=wanted):
            block = stored[start:stop]
            if ((block.view(torch.uint8) & 127) == 127).any():
                raise CheckpointError(f"{self._files.path_of(weight)}: tensor {weight} holds NaN")
            yield start, QuantisedRows(block, scales[start:stop].float(), None)

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
    bits, kind = weights.integer("num_bits"), weights.values.get("type", "int")
    if (kind, bits) not in (("int", 4), ("int", 8), ("float", 8)):
        raise CheckpointError(
            f"{weights.where}: {bits} bits of type {kind!r} are not supported; "
            "known: int of 4 or 8 bits, float of 8 bits"
        )
    strategy = weights.values.get("strategy", "group" if "group_size" in weights else "tensor")
    if strategy not in ("tensor", "channel", "group"):
        raise weights.bad("strategy", "tensor, channel or group")
    symmetric = weights.flag("symmetric", True)
    if kind == "float" and (strategy == "group" or not symmetric):
        raise CheckpointError(f"{weights.where}: float weights must be symmetric, with one scale per row")
    activations = group.section("input_activations")
    if activations is not None:
        _check_activations(activations, kind)
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
        floating=kind == "float",
    )


def _check_activations(fields: JsonFields, kind: str) -> None:
    """Refuse all but 8 bits of the weights' kind, rounded per token while serving.

    A fixed scale of e4m3 activations is passed over: a scale of each token's own rounds them less.
    """
    dynamic = fields.values.get("dynamic") is True and fields.values.get("strategy", "token") == "token"
    fixed = fields.values.get("dynamic", False) is False and fields.values.get("strategy") == "tensor"
    eight = fields.values.get("type", "int") == kind and fields.integer("num_bits") == 8
    if not (eight and (dynamic or (fixed and kind == "float"))):
        raise CheckpointError(
            f"{fields.where}: only {kind}8 activations that are rounded per token while serving are "
            f'supported (num_bits 8, type "{kind}", strategy "token", dynamic true)'
        )


def _matches(pattern: str, module: str) -> bool:
    if pattern.startswith("re:"):
        return re.match(pattern.removeprefix("re:"), module) is not None
    return pattern in ("Linear", module)
