"""Which format each matrix gets."""

from __future__ import annotations

import pytest
import torch

from rhizome_engine.models.family import TensorNames
from rhizome_engine.weights.choose import QUANTIZATIONS, Quantization, format_chooser
from rhizome_engine.weights.format import Dense, Fp8

NAMES = TensorNames()


@pytest.mark.parametrize("quantization", QUANTIZATIONS)
def test_a_router_is_dense_and_its_inputs_are_never_rounded(quantization: Quantization) -> None:
    choose = format_chooser(quantization, torch.bfloat16, NAMES)
    assert choose(f"model.layers.0.{NAMES.router}", 256) == Dense(torch.bfloat16, exact=True)
    assert choose("model.layers.0.mlp.down_proj", 256) != Dense(torch.bfloat16, exact=True)


def test_under_fp8_all_matrices_but_routers_are_e4m3() -> None:
    choose = format_chooser("fp8", torch.bfloat16, NAMES)
    for name in (NAMES.embedding, NAMES.head, "model.layers.0.mlp.down_proj"):
        assert choose(name, 100) == Fp8()
