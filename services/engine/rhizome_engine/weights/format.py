"""Names of the ways a matrix can be kept."""

from __future__ import annotations

from dataclasses import dataclass

import torch


@dataclass(frozen=True, slots=True)
class Dense:
    """Floating point.

    Attributes:
        dtype: float32, bfloat16 or float16.
        exact: activations are not rounded for its products, even by kernels that round those of others.
    """

    dtype: torch.dtype
    exact: bool = False

    def __str__(self) -> str:
        return str(self.dtype).removeprefix("torch.")


@dataclass(frozen=True, slots=True)
class Int8:
    """Symmetric int8, one scale per row; activations are quantised per token to int8 as well."""

    def __str__(self) -> str:
        return "int8"


@dataclass(frozen=True, slots=True)
class Grouped:
    """Unsigned integers of few bits with a scale and an offset per group along a row; activations stay float.

    An element is `scale * q + offset`.

    Attributes:
        bits: 4 or 8.
        group_size: elements per group; in_features is a multiple of it.
    """

    bits: int
    group_size: int

    def __str__(self) -> str:
        return f"int{self.bits}-g{self.group_size}"


@dataclass(frozen=True, slots=True)
class Fp8:
    """e4m3: a sign, four bits of exponent, three of mantissa, the largest 448; one float32 scale per row.

    A row is divided by its scale, its largest absolute value / 448, and rounded to the nearest e4m3, ties to
    even. Activations are rounded the same way, token by token, while computing. An element of a product is
    the sum, in float32, of products of e4m3 values, times the scales of the token and of the row. Kernels
    may leave the activations of small batches as they are: nothing but less rounding comes of it.
    """

    def __str__(self) -> str:
        return "fp8"


WeightFormat = Dense | Int8 | Grouped | Fp8
