"""Which format each matrix gets."""

from __future__ import annotations

import pytest
import torch

from rhizome_engine.models.family import TensorNames
from rhizome_engine.weights.choose import QUANTIZATIONS, Quantization, format_chooser
from rhizome_engine.weights.format import Dense

NAMES = TensorNames()


@pytest.mark.parametrize("quantization", QUANTIZATIONS)
def test_a_router_is_dense_and_its_inputs_are_never_rounded(quantization: Quantization) -> None:
    choose = format_chooser(quantization, torch.bfloat16, NAMES)
    assert choose(f"model.layers.0.{NAMES.router}", 256) == Dense(torch.bfloat16, exact=True)
    assert choose("model.layers.0.mlp.down_proj", 256) != Dense(torch.bfloat16, exact=True)
