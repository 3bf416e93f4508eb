"""The operations of `Kernels` in C++: one call for each, on the CPU, with float32 activations."""

from __future__ import annotations

import ctypes

import torch
from torch import Tensor

from rhizome_engine.checkpoint.model_config import Activation
from rhizome_engine.kernels.native.library import Library
from rhizome_engine.kernels.native.native_weight import MatrixStruct, NativeWeight, address
from rhizome_engine.kernels.native.weight_memory import WeightMemory
from rhizome_engine.layers.linear import Linear
from rhizome_engine.layers.rms_norm import RMSNorm
from rhizome_engine.weights.base import Weight
from rhizome_engine.weights.format import WeightFormat

_STORE, _ADD = 0, 1
_GATED = {"silu": 2, "gelu_tanh": 3}
MOST_VIEWS = 4096
"""Views of a result buffer that are kept, one for each shape that occurred."""


class LinearPlanStruct(ctypes.Structure):
    """`LinearPlan` of src/matrix.h."""

    _fields_ = (
        ("weight", ctypes.POINTER(MatrixStruct)),
        ("bias", ctypes.c_void_p),
        ("gain", ctypes.c_void_p),
        ("eps", ctypes.c_float),
        ("multiplier", ctypes.c_float),
        ("epilogue", ctypes.c_int32),
    )


class Results:
    """Memory for the results of one operation: grows to the largest, and is handed out again and again."""

    def __init__(self) -> None:
        self._memory = torch.empty(0)
        self._views: dict[tuple[int, int], tuple[Tensor, int]] = {}

    def view(self, rows: int, columns: int) -> tuple[Tensor, int]:
        """Return [rows, columns] of undefined contents, and its address."""
        key = (rows, columns)
        found = self._views.get(key)
        if found is None:
            if rows * columns > self._memory.numel() or len(self._views) >= MOST_VIEWS:
                self._views.clear()
            if rows * columns > self._memory.numel():
                self._memory = torch.empty(rows * columns)
            view = self._memory[: rows * columns].view(rows, columns)
            found = self._views[key] = (view, view.data_ptr())
        return found


class NativeKernels:
    """See `Kernels`.

    What C++ needs to know of a layer is written down when the layer is first computed: bias and gain are
    filled in place by then or later, but never replaced.

    Args:
        library: compiled for this processor.
        rounding: products with bfloat16 matrices round activations to bfloat16 as well, which is faster and
            less exact; sums are float32.

    Raises:
        ValueError: the processor cannot round so.
    """

    activation_dtype = torch.float32

    def __init__(self, library: Library, *, rounding: bool = False) -> None:
        if rounding and not library.has_bfloat16():
            raise ValueError(f"{library.variant} has no products in bfloat16")
        self.name = f"native-{library.variant}" + ("-rounding" if rounding else "")
        self.device = torch.device("cpu")
        self._library = library
        self._rounding = rounding
        self._memory = WeightMemory()
        self._run = library["rhizome_linear"]
        self._run_add_norm = library["rhizome_add_norm"]
        # The plans of a layer go with the layer: keys are what the call depends on besides x.
        self._plans: dict[tuple[object, ...], tuple[object, LinearPlanStruct, int]] = {}
        self._linear_results = Results()
        self._gated_results = Results()

    def new_weight(self, weight_format: WeightFormat, out_features: int, in_features: int) -> NativeWeight:
        """See `Kernels.new_weight`.

        Raises:
            ValueError: no kernel computes with such a matrix.
        """
        return NativeWeight(
            self._library, self._memory, weight_format, out_features, in_features, rounding=self._rounding
        )

    def embed(self, weight: Weight, token_ids: Tensor, multiplier: float) -> Tensor:
        """See `Kernels.embed`.

        Raises:
            IndexError: an id is no row.
        """
        return _native_weight(weight).gather(token_ids, multiplier)

    def linear(self, x: Tensor, linear: Linear, norm: RMSNorm | None = None) -> Tensor:
        """See `Kernels.linear`."""
        plan = self._plans.get((linear, norm)) or self._make_plan((linear, norm), linear, norm, _STORE, 1.0)
        rows = _check_rows(x, linear.in_features)
        result, target = self._linear_results.view(rows, linear.out_features)
        self._run(plan[2], x.data_ptr(), rows, target)
        return result

    def gated_linear(self, x: Tensor, linear: Linear, activation: Activation, norm: RMSNorm | None) -> Tensor:
        """See `Kernels.gated_linear`."""
        key = (linear, norm, activation)
        plan = self._plans.get(key) or self._make_plan(key, linear, norm, _GATED[activation], 1.0)
        rows = _check_rows(x, linear.in_features)
        result, target = self._gated_results.view(rows, linear.out_features // 2)
        self._run(plan[2], x.data_ptr(), rows, target)
        return result

    def add_linear(self, residual: Tensor, x: Tensor, linear: Linear, multiplier: float = 1.0) -> None:
        """See `Kernels.add_linear`."""
        key = (linear, multiplier)
        plan = self._plans.get(key) or self._make_plan(key, linear, None, _ADD, multiplier)
        rows = _check_rows(x, linear.in_features)
        assert _check_rows(residual, linear.out_features) == rows, "one row of x for each of the residual"
        self._run(plan[2], x.data_ptr(), rows, residual.data_ptr())

    def add_norm(self, residual: Tensor, x: Tensor, norm: RMSNorm, multiplier: float = 1.0) -> None:
        """See `Kernels.add_norm`."""
        size = norm.gain.numel()
        rows = _check_rows(x, size)
        assert _check_rows(residual, size) == rows, "one row of x for each of the residual"
        gain = norm.gain.data_ptr()
        self._run_add_norm(residual.data_ptr(), x.data_ptr(), gain, norm.eps, multiplier, rows, size)

    def _make_plan(
        self, key: tuple[object, ...], linear: Linear, norm: RMSNorm | None, epilogue: int, multiplier: float
    ) -> tuple[object, LinearPlanStruct, int]:
        weight = _native_weight(linear.weight)
        plan = LinearPlanStruct(
            ctypes.pointer(weight.struct),
            address(linear.bias),
            None if norm is None else norm.gain.data_ptr(),
            0.0 if norm is None else norm.eps,
            multiplier,
            epilogue,
        )
        self._plans[key] = made = (weight, plan, ctypes.addressof(plan))
        return made


def _check_rows(x: Tensor, columns: int) -> int:
    shape = x.shape
    assert x.dtype == torch.float32, "native kernels compute in float32"
    assert x.is_contiguous(), "rows one after the other"
    assert len(shape) == 2, "[n, columns]"
    assert shape[1] == columns, "as wide as the matrix"
    return shape[0]


def _native_weight(weight: Weight) -> NativeWeight:
    assert isinstance(weight, NativeWeight), "made by other kernels"
    return weight
