"""What a model will need, worked out before anything is allocated."""

from __future__ import annotations

import torch

from rhizome_engine.checkpoint.model_config import ModelConfig
from rhizome_engine.kernels.torch_kernels import TorchKernels
from rhizome_engine.memory_size import format_bytes
from rhizome_engine.models.decoder import Decoder, FormatOf
from rhizome_engine.models.family import TensorNames
from rhizome_engine.runner.memory import MemoryNeeds
from rhizome_engine.runner.numerics import Numerics
from rhizome_engine.runner.workspace import Workspace
from rhizome_engine.weights.choose import QUANTIZATIONS, format_chooser
from rhizome_engine.weights.format import Grouped
from rhizome_engine.weights.targets import ModelTargets, format_summary


def model_targets(
    config: ModelConfig, names: TensorNames, dense: torch.dtype, format_of: FormatOf
) -> ModelTargets:
    """Return the parameters of a model on a device without memory: sizes and formats, no contents."""
    return Decoder(config, names, TorchKernels(torch.device("meta"), dense), format_of).targets


def memory_needs(
    config: ModelConfig,
    names: TensorNames,
    numerics: Numerics,
    format_of: FormatOf,
    *,
    num_tokens: int,
    num_rows: int,
    page_size: int,
    in_place: bool,
) -> MemoryNeeds:
    """Work out what a model needs.

    Args:
        config: of the model.
        names: of its tensors.
        numerics: in which formats it computes.
        format_of: how each matrix is kept.
        num_tokens: of the largest step.
        num_rows: of the largest step.
        page_size: tokens per page.
        in_place: attention reads the pool where it is.
    """
    targets = model_targets(config, names, numerics.weight_dtype, format_of)
    unpacked = 0
    if isinstance(numerics.kernels, TorchKernels):
        # A product with grouped integers makes a floating-point matrix first, from bytes, in float32.
        grouped = (t.weight for t in targets.matrices.values() if isinstance(t.weight.format, Grouped))
        most = max((weight.out_features * weight.in_features for weight in grouped), default=0)
        unpacked = most * (1 + 4 + 4 + numerics.kernels.activation_dtype.itemsize)
    kv_element = numerics.kv_dtype.itemsize
    workspace = Workspace(config, num_tokens, num_rows, kv_element, gathers=not in_place, unpacked=unpacked)

    def remedies() -> list[str]:
        found = []
        for quantization in (q for q in QUANTIZATIONS if q != "none"):
            chooser = format_chooser(quantization, numerics.weight_dtype, names)
            size = model_targets(config, names, numerics.weight_dtype, chooser).num_bytes
            if size < 0.9 * targets.num_bytes:
                found.append(f"--quantization {quantization} makes the weights {format_bytes(size)}")
        if kv_element > 2:
            found.append("--kv-cache-dtype bfloat16 halves the memory of each token")
        return [*found, "a lower --max-step-tokens or --max-batch-size makes the workspace smaller"]

    return MemoryNeeds(
        weights=targets.num_bytes,
        weights_name=format_summary(targets),
        workspace=workspace.num_bytes,
        max_context=config.max_position_embeddings,
        page=config.kv_bytes_per_token(kv_element) * page_size,
        page_size=page_size,
        remedies=remedies,
    )
