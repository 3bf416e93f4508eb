"""Which kernels compute, and why; products in bfloat16 only for who asks for them by name."""

from __future__ import annotations

import pytest
import torch
import triton

from rhizome_engine.kernels.native import library
from rhizome_engine.kernels.triton.runtime import interpreted, why_not
from rhizome_engine.layers.linear import Linear
from rhizome_engine.runner import numerics as numerics_module
from rhizome_engine.runner.numerics import Numerics, choose_numerics
from rhizome_engine.weights.format import Dense

pytestmark = pytest.mark.timeout(600)  # the first one may compile, beside others on few cores


def choose(dtype: str) -> Numerics:
    return choose_numerics(
        torch.device("cpu"),
        dtype=dtype,
        kv_dtype="auto",
        kernels="auto",
        quantization="none",
        stored="bfloat16",
        num_threads=2,
    )


def rounds(numerics: Numerics) -> bool:
    """Whether 1 + 2^-12, which is no bfloat16, is multiplied as 1."""
    linear = Linear(numerics.kernels, Dense(torch.bfloat16), 1, {"part": 1})
    linear.weight.fill(0, torch.ones(1, 1))
    return numerics.kernels.linear(torch.tensor([[1 + 2.0**-12]]), linear).item() == 1.0


@pytest.fixture
def native() -> library.Library:
    found = library.load_library()
    if found is None:
        pytest.skip("no native kernels here")
    return found


def test_bfloat16_by_name_rounds_where_the_processor_can(native: library.Library) -> None:
    numerics = choose("bfloat16")
    assert numerics.weight_dtype == torch.bfloat16
    assert rounds(numerics) is native.has_bfloat16()
    assert ("products in bfloat16" in numerics.reason) is native.has_bfloat16()


@pytest.mark.parametrize("dtype", ["auto", "float32"])
def test_nothing_is_rounded_otherwise(native: library.Library, dtype: str) -> None:
    numerics = choose(dtype)
    assert not rounds(numerics)
    assert "products in bfloat16" not in numerics.reason


def test_a_processor_without_keeps_bfloat16_weights_and_float32_products(
    native: library.Library, monkeypatch: pytest.MonkeyPatch
) -> None:
    flags = library.cpu_flags() - {"avx512_bf16"}
    monkeypatch.setattr(library, "cpu_flags", lambda: flags)
    numerics = choose("bfloat16")
    assert numerics.weight_dtype == torch.bfloat16
    assert numerics.kernels.name in ("native-avx512vnni", "native-avx2")
    assert not rounds(numerics)


def chosen(kernels: str, device: str = "cpu") -> Numerics:
    return choose_numerics(
        torch.device(device),
        dtype="auto",
        kv_dtype="auto",
        kernels=kernels,
        quantization="none",
        stored="bfloat16",
        num_threads=2,
    )


def test_a_cpu_computes_with_triton_only_in_its_interpreter(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TRITON_INTERPRET", "1")
    numerics = chosen("triton")
    assert (numerics.kernels.name, numerics.weight_dtype) == ("triton", torch.float32)
    assert numerics.reason.startswith("version ")
    assert numerics.reason.endswith(", interpreted")
    assert chosen("auto").kernels.name != "triton"
    monkeypatch.setenv("TRITON_INTERPRET", "off")
    with pytest.raises(ValueError, match="triton kernels were asked for, but triton kernels need a GPU"):
        chosen("triton")


def test_a_gpu_computes_with_triton_or_says_why_not(monkeypatch: pytest.MonkeyPatch) -> None:
    """A device without memory stands for the GPU: nothing is computed, only chosen."""
    monkeypatch.setattr(numerics_module, "why_not", lambda device: None)
    numerics = chosen("auto", "meta")
    assert (numerics.kernels.name, numerics.weight_dtype) == ("triton", torch.bfloat16)
    assert chosen("torch", "meta").reason == "asked for"
    monkeypatch.setattr(numerics_module, "why_not", lambda device: "triton is not installed")
    numerics = chosen("auto", "meta")
    assert (numerics.kernels.name, numerics.reason) == ("torch", "triton is not installed")
    with pytest.raises(ValueError, match="triton kernels were asked for, but triton is not installed"):
        chosen("triton", "meta")


def test_why_triton_cannot_compute_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    cuda = torch.device("cuda")
    monkeypatch.delenv("TRITON_INTERPRET", raising=False)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert why_not(cuda) == "there is no usable CUDA device"
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: (7, 5))
    assert why_not(cuda) == "triton kernels need compute capability 8.0, this GPU has 7.5"
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: (9, 0))
    assert why_not(cuda) is None
    monkeypatch.setenv("TRITON_INTERPRET", "1")
    assert why_not(cuda) == "TRITON_INTERPRET is set, which runs kernels on the host"
    assert why_not(torch.device("meta")) == "triton kernels are for CUDA devices, not meta"
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    assert why_not(cuda) == "triton is not installed"


@pytest.mark.parametrize("value", ["", "0", "1", "true", "ON", "yes", "Y", "t", "off"])
def test_the_interpreter_is_asked_for_as_triton_reads_it(monkeypatch: pytest.MonkeyPatch, value: str) -> None:
    monkeypatch.setenv("TRITON_INTERPRET", value)
    assert interpreted() == triton.knobs.runtime.interpret
