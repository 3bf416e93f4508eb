"""What a model will need, worked out before anything is allocated."""

from __future__ import annotations

import torch

from rhizome_engine.checkpoint.model_config import ModelConfig
from rhizome_engine.kernels.base import Kernels
from rhizome_engine.kernels.torch_kernels import TorchKernels
from rhizome_engine.memory_size import format_bytes
from rhizome_engine.models.decoder import Decoder, FormatOf
from rhizome_engine.models.family import TensorNames
from rhizome_engine.parallel.group import RankGroup
from rhizome_engine.parallel.shares import config_of_rank
from rhizome_engine.runner.memory import MemoryNeeds
from rhizome_engine.runner.numerics import Numerics
from rhizome_engine.runner.recorded_memory import RecordedMemory
from rhizome_engine.runner.workspace import Workspace
from rhizome_engine.weights.choose import QUANTIZATIONS, format_chooser
from rhizome_engine.weights.format import Fp8, Grouped
from rhizome_engine.weights.targets import ModelTargets, format_summary


def model_targets(
    config: ModelConfig,
    names: TensorNames,
    dense: torch.dtype,
    format_of: FormatOf,
    kernels: Kernels | None = None,
    group: RankGroup | None = None,
) -> ModelTargets:
    """Return the parameters of a model on a device without memory: sizes and formats, no contents.

    Args:
        config: of the model.
        names: of its tensors.
        dense: what floating-point matrices are kept in.
        format_of: how each matrix is kept.
        kernels: in whose layouts; None, or those that cannot say so without memory, for PyTorch's.
        group: the ranks that share the model; None for all of it.
    """
    sizes: Kernels = TorchKernels(torch.device("meta"), dense)
    if kernels is not None and kernels.name == "triton":
        from rhizome_engine.kernels.triton.triton_kernels import TritonKernels

        sizes = TritonKernels(torch.device("meta"), dense)
    return Decoder(config, names, sizes, format_of, group).targets


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
    group: RankGroup | None = None,
    recorded_slots: int = 0,
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
        group: the ranks that share the model; None for all of it.
        recorded_slots: requests that hold pages at once, where steps are recorded; 0 where none are.
    """
    targets = model_targets(config, names, numerics.weight_dtype, format_of, numerics.kernels, group)
    own = config if group is None else config_of_rank(config, group.size)
    unpacked = _most_for_one_product(targets, numerics.kernels)
    kv_element = numerics.kv_dtype.itemsize
    workspace = Workspace(own, num_tokens, num_rows, kv_element, gathers=not in_place, unpacked=unpacked)
    recorded = RecordedMemory(own, num_tokens, num_rows, recorded_slots, page_size, unpacked)

    def remedies() -> list[str]:
        found = []
        for quantization in (q for q in QUANTIZATIONS if q not in ("none", "fp8")):  # fp8 is as large as int8
            chooser = format_chooser(quantization, numerics.weight_dtype, names)
            sizes = model_targets(config, names, numerics.weight_dtype, chooser, numerics.kernels, group)
            size = sizes.num_bytes
            if size < 0.9 * targets.num_bytes:
                found.append(f"--quantization {quantization} makes the weights {format_bytes(size)}")
        if kv_element > 2:
            found.append("--kv-cache-dtype bfloat16 halves the memory of each token")
        if recorded_slots:
            found.append("--graphs off records no steps")
        return [*found, "a lower --max-step-tokens or --max-batch-size makes the workspace smaller"]

    return MemoryNeeds(
        weights=targets.num_bytes,
        weights_name=format_summary(targets),
        workspace=workspace.num_bytes,
        max_context=config.max_position_embeddings,
        page=own.kv_bytes_per_token(kv_element) * page_size,
        page_size=page_size,
        remedies=remedies,
        recorded=recorded.num_bytes if recorded_slots else lambda _: 0,
    )


def _most_for_one_product(targets: ModelTargets, kernels: Kernels) -> int:
    """Return the bytes that one product may take beside its input and its result."""
    weights = [target.weight for target in targets.matrices.values()]
    if isinstance(kernels, TorchKernels):
        # A product with grouped integers makes a floating-point matrix first, from bytes, in float32; one
        # with e4m3 makes a float32 matrix.
        bytes_of = {Grouped: 1 + 4 + 4 + kernels.activation_dtype.itemsize, Fp8: 4}
        sizes = (
            weight.out_features * weight.in_features * bytes_of.get(type(weight.format), 0)
            for weight in weights
        )
        return max(sizes, default=0)
    return max((getattr(weight, "workspace_bytes", 0) for weight in weights), default=0)
