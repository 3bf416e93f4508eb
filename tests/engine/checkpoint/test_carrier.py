"""Weights that travel through buffers arrive as those that do not."""

from __future__ import annotations

import threading
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path

import pytest
import torch
from torch import Tensor

from rhizome_engine.checkpoint.carrier import BUFFERS, Carrier, Staged, carrier_to
from rhizome_engine.checkpoint.errors import CheckpointError
from rhizome_engine.checkpoint.loader import load_checkpoint
from rhizome_engine.kernels.torch_kernels import TorchKernels
from rhizome_engine.models.decoder import Decoder
from rhizome_engine.models.registry import family_of
from rhizome_engine.weights.choose import Quantization, format_chooser
from rhizome_engine.weights.targets import ModelTargets
from rhizome_testing.checkpoints import LlamaShape, write_llama_checkpoint
from rhizome_testing.quantised_checkpoints import awq_tensors, round_matrix, write_quantised_checkpoint

SHAPE = LlamaShape(hidden_size=64, intermediate_size=192, num_hidden_layers=3, attention_bias=True)
ROW_BYTES = 64 * 2


class SlowLink:
    """A device that fetches late, and notices when a buffer is written before it has been fetched.

    The bytes arrive at once, as a later use sees them on a stream; only the buffer stays in use for longer.
    """

    def __init__(self, thread: ThreadPoolExecutor, made: list[SlowLink]) -> None:
        self._thread = thread
        self.owner = threading.get_ident()
        self.host: list[Tensor] = []
        self.overwritten = 0
        self.copies = 0
        self.finished = False
        made.append(self)

    def host_memory(self, num_bytes: int) -> Tensor:
        self.host.append(torch.zeros(num_bytes, dtype=torch.uint8))
        return self.host[-1]

    def device_memory(self, num_bytes: int) -> Tensor:
        return torch.zeros(num_bytes, dtype=torch.uint8)

    def copy(self, source: Tensor, target: Tensor) -> Callable[[], None]:
        assert threading.get_ident() == self.owner
        target.copy_(source)
        sent = source.clone()
        self.copies += 1

        def fetch() -> None:
            self.overwritten += not torch.equal(source, sent)

        return self._thread.submit(fetch).result

    def finish(self) -> None:
        self.finished = True


def targets_of(path: Path, device: str, quantization: Quantization, dtype: torch.dtype) -> ModelTargets:
    config = load_checkpoint(path).config
    names = family_of(config.architecture).names
    choose = format_chooser(quantization, dtype, names, load_checkpoint(path).open_weights().format_of)
    return Decoder(config, names, TorchKernels(torch.device(device), dtype), choose).targets


def filled(targets: ModelTargets, path: Path, carrier: Carrier | None = None) -> Mapping[str, Tensor]:
    load_checkpoint(path).open_weights().fill(targets, carrier=carrier)
    matrices = {name: target.weight.to_dense().cpu() for name, target in targets.matrices.items()}
    return matrices | {name: target.tensor.cpu() for name, target in targets.vectors.items()}


def assert_equal(found: Mapping[str, Tensor], expected: Mapping[str, Tensor]) -> None:
    assert found.keys() == expected.keys()
    for name, tensor in expected.items():
        assert torch.equal(found[name], tensor), name


@pytest.fixture(name="path", scope="module")
def _path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_llama_checkpoint(tmp_path_factory.mktemp("model"), SHAPE, dtype=torch.bfloat16, num_shards=2)


@pytest.fixture(name="awq", scope="module")
def _awq(tmp_path_factory: pytest.TempPathFactory) -> Path:
    config = {"quant_method": "awq", "bits": 4, "group_size": 32, "version": "gemm", "zero_point": True}
    rounding = partial(round_matrix, bits=4, group_size=32, symmetric=False)
    folder, shape = tmp_path_factory.mktemp("awq"), LlamaShape(intermediate_size=192)
    path, _ = write_quantised_checkpoint(
        folder, shape, config, lambda _, weight: rounding(weight), awq_tensors
    )
    return path


@pytest.mark.parametrize("buffer_bytes", [ROW_BYTES // 2, ROW_BYTES, 10 * ROW_BYTES, 2**24])
@pytest.mark.parametrize(
    ("quantization", "dtype"), [("none", torch.bfloat16), ("none", torch.float32), ("int8", torch.float32)]
)
def test_weights_are_the_same_through_buffers_of_any_size(path, buffer_bytes, quantization, dtype):
    expected = filled(targets_of(path, "cpu", quantization, dtype), path)
    links: list[SlowLink] = []
    with ThreadPoolExecutor(4) as device:
        carrier = Staged(lambda: SlowLink(device, links), buffer_bytes)
        found = filled(targets_of(path, "cpu", quantization, dtype), path, carrier)
    assert_equal(found, expected)
    assert sum(link.copies for link in links) >= 10
    assert not any(link.overwritten for link in links)
    assert all(link.finished for link in links)


def test_integers_of_a_checkpoint_travel_with_their_scales(awq):
    expected = filled(targets_of(awq, "cpu", "none", torch.float32), awq)
    links: list[SlowLink] = []
    with ThreadPoolExecutor(1) as device:
        found = filled(
            targets_of(awq, "cpu", "none", torch.float32), awq, Staged(lambda: SlowLink(device, links))
        )
    assert_equal(found, expected)
    assert not any(link.overwritten for link in links)


def test_buffers_do_not_grow_with_the_model(path):
    links: list[SlowLink] = []
    with ThreadPoolExecutor(1) as device:
        filled(
            targets_of(path, "cpu", "none", torch.float32),
            path,
            Staged(lambda: SlowLink(device, links), 4096),
        )
    owners = {link.owner for link in links}
    assert len(owners) == len(links) <= torch.get_num_threads()
    assert all(len(link.host) == BUFFERS and len(link.host[0]) == 4096 for link in links)


def test_an_error_of_the_device_ends_the_load(path):
    class Broken(SlowLink):
        def copy(self, source: Tensor, target: Tensor) -> Callable[[], None]:
            raise RuntimeError("CUDA error: an illegal memory access was encountered")

    links: list[SlowLink] = []
    with ThreadPoolExecutor(1) as device, pytest.raises(RuntimeError, match="illegal memory access"):
        filled(targets_of(path, "cpu", "none", torch.float32), path, Staged(lambda: Broken(device, links)))
    assert all(link.finished for link in links)


def test_what_cannot_be_rounded_is_named_behind_buffers_too(path, tmp_path):
    from safetensors.torch import load_file, save_file

    damaged = write_llama_checkpoint(tmp_path, SHAPE)
    tensors = load_file(damaged / "model.safetensors")
    tensors["model.layers.1.mlp.down_proj.weight"][3, 5] = float("nan")
    save_file(tensors, damaged / "model.safetensors")
    with ThreadPoolExecutor(1) as device, pytest.raises(CheckpointError, match=r"1\.mlp\.down_proj"):
        filled(
            targets_of(damaged, "cpu", "int8", torch.float32), damaged, Staged(lambda: SlowLink(device, []))
        )


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
@pytest.mark.parametrize(
    ("quantization", "dtype"), [("none", torch.bfloat16), ("none", torch.float16), ("int8", torch.bfloat16)]
)
def test_a_gpu_gets_what_a_cpu_gets(path, quantization, dtype):
    expected = filled(targets_of(path, "cpu", quantization, dtype), path)
    carrier = carrier_to(torch.device("cuda"))
    assert isinstance(carrier, Staged)
    assert_equal(filled(targets_of(path, "cuda", quantization, dtype), path, carrier), expected)
