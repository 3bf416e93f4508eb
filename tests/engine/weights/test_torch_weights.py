"""The reference's matrices of e4m3."""

from __future__ import annotations

import torch

from rhizome_engine.weights.format import Fp8
from rhizome_engine.weights.rounding import round_to_fp8
from rhizome_engine.weights.torch_weights import TorchFp8

CPU = torch.device("cpu")


def filled(n: int, k: int) -> tuple[TorchFp8, torch.Tensor]:
    weight, rows = TorchFp8(Fp8(), n, k, CPU), torch.randn(n, k)
    weight.fill(n // 2, rows[n // 2 :])
    weight.fill(0, rows[: n // 2])
    return weight, rows


def test_a_product_is_that_of_rounded_activations_and_weights() -> None:
    weight, _ = filled(20, 300)
    x = torch.randn(6, 300) * torch.logspace(-3, 3, 6)[:, None]
    q, scales = round_to_fp8(x)
    expected = (q.double() * scales.double()) @ weight.to_dense().double().T
    found = weight.product(x)
    assert found.dtype == torch.float32
    assert (found - expected).norm() < 1e-6 * expected.norm()
    assert weight.product(x.bfloat16()).dtype == torch.bfloat16


def test_rows_are_what_was_filled_within_a_sixteenth() -> None:
    weight, rows = filled(11, 64)
    found = weight.rows(torch.tensor([10, 0, 4]), torch.float32)
    assert torch.equal(found, weight.to_dense()[[10, 0, 4]])
    assert (
        (found - rows[[10, 0, 4]]).abs() <= rows[[10, 0, 4]].abs() / 16 + weight.scales.max() / 1024
    ).all()
    assert weight.num_bytes == 11 * 64 + 11 * 4
