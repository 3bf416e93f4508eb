"""Weights that travelled through pinned buffers are, bit for bit, what the file holds."""

from __future__ import annotations

from functools import partial

import torch
from gpu_bench.bench import Bench
from gpu_bench.checks.compare import Comparison, check


def run(bench: Bench) -> None:
    """Check a few matrices of every kind."""
    check(bench, "weights through pinned buffers", partial(_same_bytes, bench), inference=False)


def _same_bytes(bench: Bench) -> Comparison:
    from rhizome_engine.checkpoint.carrier import BUFFERS, Staged, carrier_to
    from rhizome_engine.checkpoint.loader import load_checkpoint
    from rhizome_engine.kernels.torch_kernels import TorchKernels
    from rhizome_engine.models.decoder import Decoder
    from rhizome_engine.models.registry import family_of
    from rhizome_engine.weights.format import Dense

    path = bench.checkpoint()
    checkpoint = load_checkpoint(path)
    names = family_of(checkpoint.config.architecture).names
    kernels = TorchKernels(bench.device, torch.bfloat16)
    model = Decoder(checkpoint.config, names, kernels, lambda _name, _in_features: Dense(torch.bfloat16))
    weights = checkpoint.open_weights()
    carrier = carrier_to(bench.device)
    weights.fill(model.targets, carrier=carrier)
    different = []
    for name, target in model.targets.matrices.items():
        stored = weights.files.tensor(f"{name}.weight", target.shape, ["BF16"])
        loaded = target.weight.tensor[target.start : target.start + target.rows]
        if not torch.equal(loaded.cpu().view(torch.int16), stored.view(torch.int16)):
            different.append(name)
    way = f"{BUFFERS} buffers a thread" if isinstance(carrier, Staged) else "in place"
    detail = f"{len(model.targets.matrices)} matrices, {way}"
    return Comparison(not different, detail if not different else f"{detail}; not the same: {different[:5]}")
