"""GPTQ: integers packed along the input, zero points along the output, as GPTQ's exporters write them.

qweight  int32 [in_features * bits / 32, rows]
qzeros   int32 [groups, rows * bits / 32]        minus 1 in each place, except in "gptq_v2"
scales         [groups, rows]
g_idx    int32 [in_features]                     the group of each column
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from rhizome_engine.checkpoint.json_fields import JsonFields
from rhizome_engine.checkpoint.quantised.activation_order import ActivationOrder
from rhizome_engine.checkpoint.quantised.base import SCALE_TYPES, grouped_rows, unpack, whole_groups
from rhizome_engine.checkpoint.weight_files import WeightFiles, row_spans
from rhizome_engine.weights.base import QuantisedRows
from rhizome_engine.weights.choose import Quantization
from rhizome_engine.weights.format import Grouped, WeightFormat

COLUMNS_TOGETHER = 256
"""Rows of the matrix are columns of the file: so many are read at once, in whole cache lines."""


class Gptq:
    """See `QuantisedFormat`.

    Args:
        fields: `quantization_config`.
        files: the checkpoint.

    Raises:
        CheckpointError: a variant that is not implemented.
    """

    name = "gptq"

    def __init__(self, fields: JsonFields, files: WeightFiles) -> None:
        self._files = files
        self._bits = fields.integer("bits")
        self._group_size = fields.integer("group_size", -1, minimum=-1)
        if self._bits not in (4, 8):
            raise fields.bad("bits", "4 or 8")
        layout = fields.values.get("checkpoint_format", fields.values.get("format", "gptq"))
        if layout not in ("gptq", "gptq_v2"):
            raise fields.bad("checkpoint_format", "gptq or gptq_v2")
        # Patterns that begin with "-:" leave modules out, which shows by their tensors.
        if any(not pattern.startswith("-:") for pattern in fields.values.get("dynamic", {})):
            raise fields.bad("dynamic", "without modules that have settings of their own")
        # Subtracted from whole words, so that a zero point of 0 borrowed from its neighbour.
        ones = 0x11111111 if self._bits == 4 else 0x01010101
        self._subtracted = ones if layout == "gptq" else 0
        self._order = ActivationOrder(files, "g_idx")
        self.quantization: Quantization = "int4" if self._bits == 4 else "int8"

    def holds(self, module: str) -> bool:
        """See `QuantisedFormat.holds`."""
        return f"{module}.qweight" in self._files

    def format_of(self, module: str, in_features: int) -> WeightFormat | None:
        """See `QuantisedFormat.format_of`."""
        if not self.holds(module):
            return None
        group_size = whole_groups(module, in_features, self._group_size)
        if self._order.group_of(module, in_features, group_size) is not None:
            return None
        return Grouped(self._bits, group_size)

    def tensor_names(self, module: str) -> list[str]:
        """See `QuantisedFormat.tensor_names`."""
        names = [f"{module}.{part}" for part in ("qweight", "qzeros", "scales")]
        return names + self._order.tensor_names(module)

    def row_blocks(
        self, module: str, shape: Sequence[int], wanted: Sequence[tuple[int, int]] | None = None
    ) -> Iterator[tuple[int, QuantisedRows]]:
        """See `QuantisedFormat.row_blocks`."""
        rows, in_features = shape
        group_size = whole_groups(module, in_features, self._group_size)
        groups, per_word = in_features // group_size, 32 // self._bits
        packed = self._files.tensor(f"{module}.qweight", [in_features // per_word, rows], ["I32"])
        zeros = self._files.tensor(f"{module}.qzeros", [groups, rows // per_word], ["I32"])
        scales = self._files.tensor(f"{module}.scales", [groups, rows], SCALE_TYPES)
        group_of = self._order.group_of(module, in_features, group_size)
        for start, stop in row_spans(shape, COLUMNS_TOGETHER, wanted=wanted):
            q = unpack(packed[:, start:stop].t().contiguous(), self._bits)
            words = zeros[:, start // per_word : stop // per_word] + self._subtracted
            zero = unpack(words.contiguous(), self._bits)
            yield start, grouped_rows(q, scales[:, start:stop].t(), zero.t(), group_of)
