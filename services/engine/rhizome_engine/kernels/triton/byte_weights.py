"""Matrices of one byte per element, int8 or e4m3, on a GPU: row by row as in the checkpoint, a scale per row.

Up to `SMALL_BATCH` rows of x a product is bound by reading the matrix. Activations stay as they are then:
elements are widened in registers and multiplied in the type of x, which costs nothing and rounds less. With
more rows activations are rounded to 8 bits as well, and tensor cores multiply bytes. So the result of a row
depends on which of the two classes its step is in, and within the first on whether it is alone.
"""

from __future__ import annotations

from functools import lru_cache
from typing import TYPE_CHECKING

import torch
import torch.nn.functional as F
from torch import Tensor

from rhizome_engine.kernels.triton.byte_rows import gather_byte_rows, scale_sums
from rhizome_engine.kernels.triton.configurations import ProductShape, configuration
from rhizome_engine.kernels.triton.dequantised_product import dequantised_product, workspace_elements
from rhizome_engine.kernels.triton.round_rows import round_rows
from rhizome_engine.kernels.triton.tile_product import tile_product
from rhizome_engine.kernels.triton.vector_product import vector_product
from rhizome_engine.kernels.triton.weight import SMALL_BATCH
from rhizome_engine.weights.format import Fp8, Int8
from rhizome_engine.weights.torch_weights import TorchFp8, TorchInt8

if TYPE_CHECKING:
    from rhizome_engine.checkpoint.model_config import Activation

_OLDEST_WITH_FP8 = (8, 9)


class _ByteWeight:
    """What both share: everything but the product of many rows."""

    q: Tensor
    scales: Tensor
    out_features: int
    in_features: int
    _multiple: int

    def rows(self, row_ids: Tensor, dtype: torch.dtype) -> Tensor:
        """See `TritonWeight.rows`."""
        return gather_byte_rows(self.q, self.scales, row_ids, dtype)

    def small_product(
        self,
        x: Tensor,
        *,
        gain: Tensor | None = None,
        eps: float = 0.0,
        bias: Tensor | None = None,
        activation: Activation | None = None,
        residual: Tensor | None = None,
        multiplier: float = 1.0,
    ) -> Tensor:
        """See `TritonWeight.small_product`."""
        shape = self._shape(len(x) == 1, activation is not None, x.dtype)
        compute = vector_product if shape.one_row else tile_product
        how = configuration(shape)
        return compute(x, self.q, gain, eps, bias, activation, residual, multiplier, how, self.scales)

    def product(self, x: Tensor) -> Tensor:
        """See `TritonWeight.product`."""
        if not len(x):
            return x.new_empty(0, self.out_features)
        if len(x) <= SMALL_BATCH:
            return self.small_product(x.contiguous())
        if self._vendor_refuses(x):
            return dequantised_product(x, self.rows, self.out_features)
        return self._vendor_product(x)

    def _shape(self, one_row: bool, gated: bool, dtype: torch.dtype) -> ProductShape:
        # Beside float32 the tile is widened to it, and takes its registers.
        itemsize = 4 if dtype == torch.float32 and not one_row else 1
        return ProductShape(one_row, self.out_features // (1 + gated), self.in_features, itemsize, gated)

    def _uneven(self) -> bool:
        return bool(self.out_features % self._multiple or self.in_features % self._multiple)

    def _workspace_bytes(self) -> int:
        """Bound what a product takes: parts of sums that are added up later, or dequantised rows."""
        shapes = [
            self._shape(False, gated, dtype)
            for gated in (False, True)
            for dtype in (torch.float32, torch.bfloat16)
        ]
        parts = max(configuration(shape).split_k for shape in shapes)
        split = 0 if parts == 1 else parts * SMALL_BATCH * (self.out_features + 1) * 4
        if not self._dequantises():
            return split
        return max(split, 4 * workspace_elements(self.out_features, self.in_features))

    def _dequantises(self) -> bool:
        """Whether the vendor's product may refuse this matrix."""
        return self._uneven()

    def _vendor_refuses(self, x: Tensor) -> bool:
        raise NotImplementedError

    def _vendor_product(self, x: Tensor) -> Tensor:
        raise NotImplementedError


class TritonInt8(_ByteWeight, TorchInt8):
    """See `TritonWeight`; int8 [out_features, in_features] and float32 [out_features].

    With many rows of x, `torch._int_mm` gives exact sums in int32 and a kernel scales them.
    """

    _multiple = 8

    def __init__(
        self, weight_format: Int8, out_features: int, in_features: int, device: torch.device
    ) -> None:
        super().__init__(weight_format, out_features, in_features, device)
        self.workspace_bytes = self._workspace_bytes()

    def _vendor_refuses(self, x: Tensor) -> bool:
        return x.is_cuda and self._uneven()

    def _vendor_product(self, x: Tensor) -> Tensor:
        q, scales = round_rows(x, torch.int8)
        return scale_sums(torch._int_mm(q, self.q.t()), scales, self.scales, len(x), x.dtype)


class TritonFp8(_ByteWeight, TorchFp8):
    """See `TritonWeight`; e4m3 [out_features, in_features] and float32 [out_features].

    With many rows of x, `torch._scaled_mm` multiplies e4m3 and scales by row and column, without the fast
    accumulation of few bits; where it refuses, the matrix is dequantised and x stays as it is.

    Raises:
        ValueError: the GPU has no e4m3.
    """

    _multiple = 16

    def __init__(
        self,
        weight_format: Fp8,
        out_features: int,
        in_features: int,
        device: torch.device,
        activation_dtype: torch.dtype,
    ) -> None:
        if device.type == "cuda":
            capability = torch.cuda.get_device_capability(device)
            if capability < _OLDEST_WITH_FP8:
                raise ValueError(
                    f"fp8 needs a GPU of compute capability 8.9, this one has "
                    f"{capability[0]}.{capability[1]}: take --quantization int8, which is as small"
                )
        super().__init__(weight_format, out_features, in_features, device)
        self.workspace_bytes = self._workspace_bytes()
        # Asked now: within a recording a refusal would spoil the recording.
        self._refused = device.type == "cuda" and not _scales_rows(device, activation_dtype)

    def _dequantises(self) -> bool:
        return True

    def _vendor_refuses(self, x: Tensor) -> bool:
        return x.is_cuda and (self._uneven() or self._refused)

    def _vendor_product(self, x: Tensor) -> Tensor:
        q, scales = round_rows(x, torch.float8_e4m3fn)
        q, scales = q[: len(x)], scales[: len(x)]
        if x.device.type == "cpu":  # the interpreter's device, for which there is no such product
            return (F.linear(q.float(), self.q.float()) * scales * self.scales).to(x.dtype)
        return torch._scaled_mm(q, self.q.t(), scales, self.scales[None, :], out_dtype=x.dtype)


@lru_cache(maxsize=8)
def _scales_rows(device: torch.device, dtype: torch.dtype) -> bool:
    """Whether the vendor's product takes e4m3 with scales by row and column, and returns `dtype`."""
    ones = torch.ones(32, 32, device=device).to(torch.float8_e4m3fn)
    scales = torch.ones(32, 1, device=device)
    try:
        found = torch._scaled_mm(ones, ones.t(), scales, scales.view(1, 32), out_dtype=dtype)
    except (RuntimeError, ValueError, NotImplementedError):
        return False
    return found.dtype == dtype
