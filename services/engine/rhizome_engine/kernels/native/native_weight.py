"""Matrices in the panels of the C++ kernels; see src/matrix.h for the layout."""

from __future__ import annotations

import ctypes

import torch
from torch import Tensor

from rhizome_engine.kernels.native.library import Library
from rhizome_engine.kernels.native.weight_memory import WeightMemory
from rhizome_engine.weights.base import QuantisedRows
from rhizome_engine.weights.format import Dense, Fp8, Grouped, Int8, WeightFormat
from rhizome_engine.weights.rounding import quantise_rows_grouped, quantise_rows_int8

PANEL = 32
INT8_MAX_IN_FEATURES = 65536
"""More products of 255 * 127 might not fit into the 32 bits that they are summed in."""
_DENSE_FORMATS = {torch.float32: 0, torch.bfloat16: 1, torch.float16: 2}
_INT8_FORMAT = 3
_GROUPED_FORMATS = {4: 4, 8: 5}
_BFLOAT16_PAIRS_FORMAT = 6


class MatrixStruct(ctypes.Structure):
    """`Matrix` of src/matrix.h."""

    _fields_ = (
        ("format", ctypes.c_int32),
        ("out_features", ctypes.c_int64),
        ("in_features", ctypes.c_int64),
        ("group_size", ctypes.c_int64),
        ("data", ctypes.c_void_p),
        ("scales", ctypes.c_void_p),
        ("offsets", ctypes.c_void_p),
    )


class NativeWeight:
    """A matrix in panels of 32 rows; see `Weight`.

    Args:
        library: packs and unpacks.
        memory: where the elements go.
        weight_format: how the weight is kept.
        out_features: rows.
        in_features: columns.
        rounding: bfloat16 is multiplied by activations rounded to bfloat16, where the format permits.

    Attributes:
        struct: what C++ sees of it; valid while this object lives.

    Raises:
        ValueError: no kernel computes with such a matrix.
    """

    def __init__(
        self,
        library: Library,
        memory: WeightMemory,
        weight_format: WeightFormat,
        out_features: int,
        in_features: int,
        *,
        rounding: bool = False,
    ) -> None:
        self._library = library
        self.format = weight_format
        self.out_features = out_features
        self.in_features = in_features
        panels = -(-out_features // PANEL)
        groups = 0
        group_size = in_features
        if isinstance(weight_format, Dense):
            if weight_format.dtype not in _DENSE_FORMATS:
                raise ValueError(f"native kernels know float32, bfloat16 and float16, not {weight_format}")
            code = _DENSE_FORMATS[weight_format.dtype]
            input_bytes = PANEL * weight_format.dtype.itemsize
            inputs = in_features
            if rounding and weight_format == Dense(torch.bfloat16):
                code, inputs = _BFLOAT16_PAIRS_FORMAT, -(-in_features // 2) * 2
        elif isinstance(weight_format, Int8):
            if in_features > INT8_MAX_IN_FEATURES:
                raise ValueError(f"int8 with {in_features} inputs; at most {INT8_MAX_IN_FEATURES} are summed")
            code, input_bytes, groups = _INT8_FORMAT, PANEL, 1
            inputs = -(-in_features // 4) * 4
        elif isinstance(weight_format, Fp8):
            raise ValueError(
                "the native CPU kernels do not multiply fp8: take --quantization int8, which is as small, or "
                "--kernels torch, which is slow on a CPU"
            )
        else:
            group_size = weight_format.group_size
            if weight_format.bits not in _GROUPED_FORMATS or group_size < 1 or in_features % group_size:
                raise ValueError(f"no kernel for {weight_format} with {in_features} inputs")
            code = _GROUPED_FORMATS[weight_format.bits]
            input_bytes = PANEL * weight_format.bits // 8
            groups = in_features // group_size
            inputs = in_features
        self._data = memory.zeros(panels * inputs * input_bytes, torch.uint8)
        self._scales = memory.zeros(panels * groups * PANEL, torch.float32) if groups else None
        grouped = isinstance(weight_format, Grouped)
        self._offsets = memory.zeros(panels * groups * PANEL, torch.float32) if grouped else None
        self.num_bytes = sum(t.nbytes for t in (self._data, self._scales, self._offsets) if t is not None)
        self.struct = MatrixStruct(
            code,
            out_features,
            in_features,
            group_size,
            self._data.data_ptr(),
            address(self._scales),
            address(self._offsets),
        )

    def fill(self, start: int, rows: Tensor) -> None:
        """See `Weight.fill`.

        Raises:
            ValueError: an element is not finite and the format has integers only.
        """
        if isinstance(self.format, Dense):
            self._pack(start, rows.to(self.format.dtype), None, None)
        elif isinstance(self.format, Int8):
            self.fill_quantised(start, quantise_rows_int8(rows))
        elif isinstance(self.format, Grouped):
            self.fill_quantised(start, quantise_rows_grouped(rows, self.format.bits, self.format.group_size))

    def fill_quantised(self, start: int, rows: QuantisedRows) -> None:
        """See `Weight.fill_quantised`."""
        if isinstance(self.format, Dense):
            raise TypeError(f"a {self.format} matrix takes no integers")
        expected = torch.int8 if isinstance(self.format, Int8) else torch.uint8
        if rows.q.dtype != expected:
            raise TypeError(f"a {self.format} matrix takes {expected}, not {rows.q.dtype}")
        offsets = rows.offsets
        if isinstance(self.format, Grouped) and offsets is None:
            offsets = torch.zeros_like(rows.scales)
        self._pack(start, rows.q, rows.scales, offsets)

    def to_dense(self) -> Tensor:
        """See `Weight.to_dense`."""
        return self.gather(torch.arange(self.out_features), 1.0)

    def gather(self, row_ids: Tensor, multiplier: float) -> Tensor:
        """Return rows times a number, float32 [n, in_features], newly allocated.

        Raises:
            IndexError: an id is no row.
        """
        ids = row_ids.to(torch.int64).contiguous()
        out = torch.empty(len(ids), self.in_features)
        failed = self._library["rhizome_embed"](
            ctypes.byref(self.struct), ids.data_ptr(), len(ids), multiplier, out.data_ptr()
        )
        if failed:
            raise IndexError(f"a row of {ids.min()}..{ids.max()} is none of the {self.out_features} rows")
        return out

    def _pack(self, start: int, elements: Tensor, scales: Tensor | None, offsets: Tensor | None) -> None:
        count = len(elements)
        if elements.shape != (count, self.in_features) or start < 0 or start + count > self.out_features:
            fits = f"[{self.out_features}, {self.in_features}]"
            raise ValueError(f"rows {list(elements.shape)} at row {start} do not fit {fits}")
        for each in (scales, offsets):
            if each is not None and each.shape != (count, self.in_features // self.struct.group_size):
                raise ValueError(f"scales or offsets are {list(each.shape)} for rows {list(elements.shape)}")
        elements = elements.contiguous()
        scales = None if scales is None else scales.float().contiguous()
        offsets = None if offsets is None else offsets.float().contiguous()
        self._library["rhizome_pack"](
            ctypes.byref(self.struct), start, count, elements.data_ptr(), address(scales), address(offsets)
        )


def address(tensor: Tensor | None) -> int | None:
    """Return where a tensor's elements are; None, which C++ sees as null, for no tensor."""
    return None if tensor is None else tensor.data_ptr()
