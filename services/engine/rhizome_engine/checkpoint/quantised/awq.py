"""AWQ in its "gemm" layout: four bits, packed along the output in an order of its own.

qweight  int32 [in_features, rows / 8]
qzeros   int32 [groups, rows / 8]
scales         [groups, rows]
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from torch import Tensor

from rhizome_engine.checkpoint.json_fields import JsonFields
from rhizome_engine.checkpoint.quantised.base import SCALE_TYPES, grouped_rows, unpack, whole_groups
from rhizome_engine.checkpoint.quantised.gptq import COLUMNS_TOGETHER
from rhizome_engine.checkpoint.weight_files import WeightFiles, row_spans
from rhizome_engine.weights.base import QuantisedRows
from rhizome_engine.weights.choose import Quantization
from rhizome_engine.weights.format import Grouped, WeightFormat

_PLACE_OF = [0, 4, 1, 5, 2, 6, 3, 7]
"""Row i of eight lies in this nibble of their word."""


class Awq:
    """See `QuantisedFormat`.

    Args:
        fields: `quantization_config`.
        files: the checkpoint.

    Raises:
        CheckpointError: a variant that is not implemented.
    """

    name = "awq"
    quantization: Quantization = "int4"

    def __init__(self, fields: JsonFields, files: WeightFiles) -> None:
        self._files = files
        self._group_size = fields.integer("group_size", 128, minimum=-1)
        if fields.integer("bits", 4) != 4:
            raise fields.bad("bits", "4")
        if str(fields.values.get("version", "gemm")).lower() != "gemm":
            raise fields.bad("version", "gemm")
        if not fields.flag("zero_point", True):
            raise fields.bad("zero_point", "true")

    def holds(self, module: str) -> bool:
        """See `QuantisedFormat.holds`."""
        return f"{module}.qweight" in self._files

    def format_of(self, module: str, in_features: int) -> WeightFormat | None:
        """See `QuantisedFormat.format_of`."""
        return Grouped(4, whole_groups(module, in_features, self._group_size)) if self.holds(module) else None

    def tensor_names(self, module: str) -> list[str]:
        """See `QuantisedFormat.tensor_names`."""
        return [f"{module}.{part}" for part in ("qweight", "qzeros", "scales")]

    def row_blocks(
        self, module: str, shape: Sequence[int], wanted: Sequence[tuple[int, int]] | None = None
    ) -> Iterator[tuple[int, QuantisedRows]]:
        """See `QuantisedFormat.row_blocks`."""
        rows, in_features = shape
        groups = in_features // whole_groups(module, in_features, self._group_size)
        packed = self._files.tensor(f"{module}.qweight", [in_features, rows // 8], ["I32"])
        zeros = self._files.tensor(f"{module}.qzeros", [groups, rows // 8], ["I32"])
        scales = self._files.tensor(f"{module}.scales", [groups, rows], SCALE_TYPES)
        for start, stop in row_spans(shape, COLUMNS_TOGETHER, wanted=wanted):
            words = slice(start // 8, stop // 8)
            q = _unpack_rows(packed[:, words]).t().contiguous()
            yield start, grouped_rows(q, scales[:, start:stop].t(), _unpack_rows(zeros[:, words]).t())


def _unpack_rows(packed: Tensor) -> Tensor:
    """Unpack [n, words] to [n, words * 8] in the order of the matrix's rows."""
    nibbles = unpack(packed.contiguous(), 4)
    return nibbles.view(len(nibbles), -1, 8)[..., _PLACE_OF].flatten(1)
