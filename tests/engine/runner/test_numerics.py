"""Who asks for bfloat16 by name gets products in bfloat16, where the processor has them; nobody else does."""

from __future__ import annotations

import pytest
import torch

from rhizome_engine.kernels.native import library
from rhizome_engine.layers.linear import Linear
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
