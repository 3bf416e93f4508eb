"""A load takes the memory of the weights and hardly more: the file is never in memory beside the model."""

from __future__ import annotations

import json
import math
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from rhizome_engine.checkpoint.loader import load_checkpoint
from rhizome_engine.kernels.torch_kernels import TorchKernels
from rhizome_engine.models.decoder import Decoder
from rhizome_engine.models.family import TensorNames
from rhizome_engine.weights.format import Dense
from rhizome_testing.checkpoints import LlamaShape, write_json, write_llama_checkpoint, write_weights

SHAPE = LlamaShape(
    vocab_size=32000,
    hidden_size=1024,
    intermediate_size=4096,
    num_hidden_layers=10,
    num_attention_heads=16,
    num_key_value_heads=8,
    tie_word_embeddings=True,
)
MOST = 1.15
LOAD = """
import json, sys, threading, torch
import psutil
from rhizome_engine.checkpoint.loader import load_checkpoint
from rhizome_engine.kernels.torch_kernels import TorchKernels
from rhizome_engine.models.decoder import Decoder
from rhizome_engine.models.registry import family_of
from rhizome_engine.weights.choose import format_chooser

small, path, dtype, quantization = sys.argv[1:]
dtype = getattr(torch, dtype)
process, done, peak = psutil.Process(), threading.Event(), 0

def load(path):
    checkpoint = load_checkpoint(path)
    names = family_of(checkpoint.config.architecture).names
    kernels = TorchKernels(torch.device("cpu"), dtype)
    targets = Decoder(checkpoint.config, names, kernels, format_chooser(quantization, dtype, names)).targets
    checkpoint.load_weights(targets)
    return targets

load(small)  # the memory of the code itself

def watch():
    global peak
    while not done.is_set():
        peak = max(peak, process.memory_info().rss)
        done.wait(0.002)

before = process.memory_info().rss
watcher = threading.Thread(target=watch, daemon=True)
watcher.start()
targets = load(path)
done.set()
watcher.join()
peak = max(peak, process.memory_info().rss)
print(json.dumps({"weights": targets.num_bytes, "peak": peak - before}))
"""


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """About 380 MB in bfloat16, in three files; beside it a small one."""
    directory = tmp_path_factory.mktemp("checkpoints")
    write_llama_checkpoint(directory / "small", dtype=torch.bfloat16)
    large = directory / "large"
    large.mkdir()
    write_json(large / "config.json", SHAPE.to_config())
    config = load_checkpoint(large).config
    meta = TorchKernels(torch.device("meta"), torch.float32)
    targets = Decoder(config, TensorNames(), meta, lambda _name, _in_features: Dense(torch.float32)).targets
    shapes = {f"{name}.weight": matrix.shape for name, matrix in targets.matrices.items()}
    shapes.update((name, list(vector.tensor.shape)) for name, vector in targets.vectors.items())
    numbers = torch.randn(2**22, generator=torch.Generator().manual_seed(0)).bfloat16()
    weights = {
        name: numbers.repeat(-(-math.prod(shape) // len(numbers)))[: math.prod(shape)].view(shape)
        for name, shape in shapes.items()
    }
    write_weights(large, weights, num_shards=3)
    return large


@pytest.mark.skipif(sys.platform != "linux", reason="memory is given back by the page on Linux")
@pytest.mark.parametrize(
    ("dtype", "quantization"),
    [("bfloat16", "none"), ("float32", "none"), ("float32", "int8"), ("float32", "int4")],
)
def test_a_load_takes_little_more_than_the_weights(checkpoint: Path, dtype: str, quantization: str) -> None:
    found = subprocess.run(
        [sys.executable, "-c", LOAD, str(checkpoint.parent / "small"), str(checkpoint), dtype, quantization],
        capture_output=True,
        text=True,
        check=True,
        timeout=110,
    )
    measured = json.loads(found.stdout.splitlines()[-1])
    assert measured["weights"] > 100e6
    # Far below it, nothing was loaded.
    assert 0.9 * measured["weights"] < measured["peak"] <= MOST * measured["weights"]
