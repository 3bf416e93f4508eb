"""Which format a matrix is kept in."""

from __future__ import annotations

from collections.abc import Callable
from typing import Literal, get_args

import torch

from rhizome_engine.models.family import TensorNames
from rhizome_engine.weights.format import Dense, Fp8, Grouped, Int8, WeightFormat

Quantization = Literal["none", "int8", "fp8", "int4"]
QUANTIZATIONS: tuple[Quantization, ...] = get_args(Quantization)
GROUP_SIZES = (128, 64, 32)

StoredFormat = Callable[[str, int], WeightFormat | None]
"""Module name and in_features → the format that keeps its matrix as it is; None for floating point."""


def format_chooser(
    quantization: Quantization,
    dense: torch.dtype,
    names: TensorNames,
    stored: StoredFormat = lambda _name, _in_features: None,
) -> Callable[[str, int], WeightFormat]:
    """Return what decides, by a module's name and in_features, how its matrix is kept.

    A router chooses among experts by small differences and is small itself: it stays dense. Under int4 the
    embedding and the output layer get 8 bits, since rounding them shows most.

    Args:
        quantization: "none" leaves matrices as the checkpoint has them.
        dense: what floating-point matrices become.
        names: of the model's tensors.
        stored: what the checkpoint has.

    Raises:
        ValueError: unknown quantization.
    """
    if quantization not in QUANTIZATIONS:
        raise ValueError(f"quantization must be {', '.join(QUANTIZATIONS)}, not {quantization!r}")

    def choose(name: str, in_features: int) -> WeightFormat:
        if name.endswith(names.router):
            return Dense(dense, exact=True)
        if quantization == "none":
            # One product computes several modules, in one format: floating point holds them all.
            formats = {stored(part, in_features) for part in _computed_with(name, names)}
            kept = formats.pop() if len(formats) == 1 else None
            return kept or Dense(dense)
        if quantization == "int8":
            return Int8()
        if quantization == "fp8":
            return Fp8()
        bits = 8 if name in (names.embedding, names.head) else 4
        return Grouped(bits, next((size for size in GROUP_SIZES if in_features % size == 0), in_features))

    return choose


def _computed_with(name: str, names: TensorNames) -> list[str]:
    """Return the modules that one product computes, given the name of one of them."""
    for parts in (names.qkv, names.gate_up, names.expert_gate_up):
        for part in parts:
            if name.endswith(f".{part}"):
                return [name.removesuffix(part) + other for other in parts]
    return [name]
