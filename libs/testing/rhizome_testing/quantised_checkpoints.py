"""Random Llama checkpoints whose projections are integers, written as each format's exporters write them.

The packing here is the slow and literal one, place by place, so that it shares nothing with what reads it.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import torch
from torch import Tensor

from rhizome_testing.checkpoints import (
    LlamaShape,
    random_llama_weights,
    write_json,
    write_llama_checkpoint,
    write_weights,
)

AnyRounded = TypeVar("AnyRounded", "Rounded", "RoundedFloats")
AWQ_ORDER = (0, 2, 4, 6, 1, 3, 5, 7)
"""Nibble i of a word holds this one of its eight columns."""


@dataclass(frozen=True)
class Rounded:
    """A matrix of unsigned integers that stand for `(q - zero) * scale`.

    Attributes:
        bits: of an integer.
        q: [rows, in_features] int64.
        scales: [rows, groups], in the type of the file.
        zeros: [rows, groups] int64.
        group_of: [in_features], the group of each column.
    """

    bits: int
    q: Tensor
    scales: Tensor
    zeros: Tensor
    group_of: Tensor

    def dense(self) -> Tensor:
        """Return what it stands for, float32."""
        zeros, scales = self.zeros[:, self.group_of], self.scales[:, self.group_of]
        return (self.q - zeros).float() * scales.float()


@dataclass(frozen=True)
class RoundedFloats:
    """A matrix of e4m3 values and their scales.

    Attributes:
        q: [rows, in_features] float8_e4m3fn.
        scales: [rows, 1], or [1] for all rows, in the type of the file.
    """

    q: Tensor
    scales: Tensor

    def dense(self) -> Tensor:
        """Return what it stands for, float32."""
        return self.q.float() * self.scales.float()


def round_floats(weight: Tensor, *, one_scale: bool = False) -> RoundedFloats:
    """Round to e4m3 in units of each row's, or the whole matrix's, largest absolute value / 448."""
    largest = weight.abs().amax().view(1) if one_scale else weight.abs().amax(1, keepdim=True)
    scales = (largest / 448).to(torch.bfloat16)
    q = (weight / scales.float()).clamp(-448, 448).to(torch.float8_e4m3fn)
    return RoundedFloats(q, scales)


def round_matrix(
    weight: Tensor,
    bits: int,
    group_size: int,
    *,
    symmetric: bool,
    dtype: torch.dtype = torch.float16,
    group_of: Tensor | None = None,
) -> Rounded:
    """Round to the nearest integer between each group's ends, or symmetrically around the middle."""
    in_features = weight.shape[1]
    if group_of is None:
        group_of = torch.arange(in_features) // group_size
    largest, middle = (1 << bits) - 1, 1 << (bits - 1)
    grouped = weight[:, group_of.argsort(stable=True)].view(len(weight), -1, group_size)
    if symmetric:
        scales = (grouped.abs().amax(-1) / (middle - 1)).to(dtype)
        zeros = torch.full_like(scales, middle, dtype=torch.int64)
    else:
        low, high = grouped.amin(-1).clamp(max=0), grouped.amax(-1).clamp(min=0)
        scales = ((high - low) / largest).to(dtype)
        zeros = (-low / scales.float()).round().clamp(0, largest).long()
    q = (weight / scales.float()[:, group_of]).round() + zeros[:, group_of]
    return Rounded(bits, q.clamp(0, largest).long(), scales, zeros, group_of)


def pack_along_rows(q: Tensor, bits: int) -> Tensor:
    """Pack [n, columns] into int32 words [n, columns * bits / 32], lowest bits first, padded with zeros."""
    per_word = 32 // bits
    padded = torch.nn.functional.pad(q, (0, -q.shape[1] % per_word))
    words = torch.zeros(len(q), padded.shape[1] // per_word, dtype=torch.int64)
    for place in range(per_word):
        words |= padded[:, place::per_word] << (bits * place)
    return torch.where(words >= 2**31, words - 2**32, words).to(torch.int32)


def gptq_tensors(module: str, rounded: Rounded, *, v2: bool = False) -> dict[str, Tensor]:
    """Write a matrix as GPTQ's exporters do; `v2` stores zero points as they are."""
    zeros = pack_along_rows(rounded.zeros.t(), rounded.bits)
    if not v2:  # one less in each place, borrowing from the next where there is nothing
        zeros -= sum(1 << shift for shift in range(0, 32, rounded.bits))
    return {
        f"{module}.qweight": pack_along_rows(rounded.q, rounded.bits).t().contiguous(),
        f"{module}.qzeros": zeros,
        f"{module}.scales": rounded.scales.t().contiguous(),
        f"{module}.g_idx": rounded.group_of.to(torch.int32),
    }


def awq_tensors(module: str, rounded: Rounded) -> dict[str, Tensor]:
    """Write a matrix in AWQ's gemm layout."""

    def pack(q: Tensor) -> Tensor:
        return pack_along_rows(q.reshape(len(q), -1, 8)[..., AWQ_ORDER].flatten(1), 4)

    return {
        f"{module}.qweight": pack(rounded.q.t()),
        f"{module}.qzeros": pack(rounded.zeros.t()),
        f"{module}.scales": rounded.scales.t().contiguous(),
    }


def compressed_tensors(
    module: str, rounded: Rounded, *, packed: bool, symmetric: bool, one_scale: bool = False
) -> dict[str, Tensor]:
    """Write a matrix as the compressed-tensors package does, packed or as int8."""
    middle = 1 << (rounded.bits - 1)
    weight = f"{module}.weight"
    tensors = {f"{weight}_scale": rounded.scales[0, :1].clone() if one_scale else rounded.scales}
    if packed:
        tensors[f"{weight}_packed"] = pack_along_rows(rounded.q, rounded.bits)
        tensors[f"{weight}_shape"] = torch.tensor(rounded.q.shape)
        if not symmetric:
            zeros = pack_along_rows(rounded.zeros.t(), rounded.bits).t().contiguous()
            tensors[f"{weight}_zero_point"] = zeros
    else:
        tensors[weight] = (rounded.q - middle).to(torch.int8)
        if not symmetric:
            tensors[f"{weight}_zero_point"] = (rounded.zeros - middle).to(torch.int8)
    return tensors


def float_tensors(module: str, rounded: RoundedFloats, *, input_scale: bool = False) -> dict[str, Tensor]:
    """Write a matrix as the compressed-tensors package does in "float-quantized"."""
    tensors = {f"{module}.weight": rounded.q, f"{module}.weight_scale": rounded.scales}
    if input_scale:
        tensors[f"{module}.input_scale"] = torch.tensor([0.03125], dtype=torch.bfloat16)
    return tensors


def write_quantised_checkpoint(
    directory: Path,
    shape: LlamaShape,
    quantization_config: Mapping[str, Any],
    round_module: Callable[[str, Tensor], AnyRounded | None],
    write_module: Callable[[str, AnyRounded], dict[str, Tensor]],
    *,
    num_shards: int = 1,
) -> tuple[Path, Path]:
    """Write the same model twice, as integers and as the float32 that these stand for.

    Args:
        directory: parent of both.
        shape: of the model.
        quantization_config: for `config.json`.
        round_module: turns the matrix of a projection into integers; None leaves it alone.
        write_module: turns these into the tensors of the format.
        num_shards: of the integers.

    Returns:
        the quantised checkpoint, and the one in float32
    """
    quantised, dense = directory / "quantised", directory / "dense"
    write_llama_checkpoint(dense, shape)
    write_llama_checkpoint(quantised, shape)
    weights = random_llama_weights(shape)
    integers: dict[str, Tensor] = {}
    for name, tensor in weights.items():
        module = name.removesuffix(".weight")
        rounded = round_module(module, tensor) if module.endswith("_proj") else None
        if rounded is None:
            integers[name] = tensor
        else:
            integers.update(write_module(module, rounded))
            weights[name] = rounded.dense()
    write_weights(dense, weights)
    (quantised / "model.safetensors").unlink()
    write_weights(quantised, integers, num_shards=num_shards)
    config = json.loads((quantised / "config.json").read_text())
    write_json(quantised / "config.json", {**config, "quantization_config": dict(quantization_config)})
    return quantised, dense
