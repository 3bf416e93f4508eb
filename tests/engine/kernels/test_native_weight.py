"""Matrices go into panels and come out again."""

from __future__ import annotations

import pytest
import torch

from rhizome_engine.kernels.native.native_kernels import NativeKernels
from rhizome_engine.kernels.native.weight_memory import WeightMemory
from rhizome_engine.weights.base import QuantisedRows
from rhizome_engine.weights.format import Dense, Grouped, Int8, WeightFormat

pytestmark = pytest.mark.timeout(600)  # the first one may compile, beside others on few cores

FORMATS: list[WeightFormat] = [
    Dense(torch.float32),
    Dense(torch.bfloat16),
    Dense(torch.float16),
    Int8(),
    Grouped(4, 32),
    Grouped(8, 32),
    Grouped(4, 96),
]


def random_integers(weight_format: WeightFormat, n: int, k: int) -> QuantisedRows:
    if isinstance(weight_format, Int8):
        return QuantisedRows(torch.randint(-128, 128, (n, k), dtype=torch.int8), torch.rand(n, 1), None)
    assert isinstance(weight_format, Grouped)
    groups = k // weight_format.group_size
    q = torch.randint(0, 1 << weight_format.bits, (n, k), dtype=torch.uint8)
    return QuantisedRows(q, torch.rand(n, groups), torch.randn(n, groups))


def dense(rows: QuantisedRows) -> torch.Tensor:
    groups = rows.scales.shape[1]
    grouped = rows.q.double().view(len(rows.q), groups, -1) * rows.scales[..., None]
    if rows.offsets is not None:
        grouped = grouped + rows.offsets[..., None]
    return grouped.flatten(1).float()


@pytest.mark.parametrize("weight_format", FORMATS, ids=str)
def test_row_blocks_of_any_size_fill_the_same_matrix(
    kernels: NativeKernels, weight_format: WeightFormat
) -> None:
    rows = torch.randn(77, 96)
    whole, pieces = (kernels.new_weight(weight_format, 77, 96) for _ in range(2))
    whole.fill(0, rows)
    for start, end in ((40, 77), (0, 1), (1, 33), (33, 40)):  # in any order
        pieces.fill(start, rows[start:end])
    assert torch.equal(whole.to_dense(), pieces.to_dense())


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16], ids=str)
def test_dense_rows_come_back_as_they_were_rounded(kernels: NativeKernels, dtype: torch.dtype) -> None:
    rows = torch.randn(50, 31)
    weight = kernels.new_weight(Dense(dtype), 50, 31)
    weight.fill(0, rows)
    assert torch.equal(weight.to_dense(), rows.to(dtype).float())


@pytest.mark.parametrize("weight_format", FORMATS[3:], ids=str)
def test_integers_of_a_checkpoint_are_kept_as_they_are(
    kernels: NativeKernels, weight_format: WeightFormat
) -> None:
    rows = random_integers(weight_format, 70, 192)
    weight = kernels.new_weight(weight_format, 70, 192)
    weight.fill_quantised(0, QuantisedRows(rows.q[:50], rows.scales[:50], _part(rows.offsets, 0, 50)))
    weight.fill_quantised(50, QuantisedRows(rows.q[50:], rows.scales[50:], _part(rows.offsets, 50, 70)))
    torch.testing.assert_close(weight.to_dense(), dense(rows), rtol=1e-6, atol=1e-6)


def test_groups_without_offsets_have_none(kernels: NativeKernels) -> None:
    rows = random_integers(Grouped(4, 32), 3, 64)
    weight = kernels.new_weight(Grouped(4, 32), 3, 64)
    weight.fill_quantised(0, QuantisedRows(rows.q, rows.scales, None))
    expected = dense(QuantisedRows(rows.q, rows.scales, None))
    torch.testing.assert_close(weight.to_dense(), expected, rtol=1e-6, atol=0)


@pytest.mark.parametrize("weight_format", FORMATS, ids=str)
def test_embed_looks_rows_up(kernels: NativeKernels, weight_format: WeightFormat) -> None:
    weight = kernels.new_weight(weight_format, 100, 96)
    weight.fill(0, torch.randn(100, 96))
    ids = torch.tensor([99, 0, 31, 32, 5, 5])
    found = kernels.embed(weight, ids, 3.0)
    torch.testing.assert_close(found, weight.to_dense()[ids] * 3, rtol=1e-6, atol=0)
    assert (
        kernels.embed(weight, ids, 1.0).data_ptr() != found.data_ptr()
    )  # the residual stream is its own memory


@pytest.mark.parametrize("token_id", [-1, 100, 1 << 40])
def test_embed_refuses_ids_outside_of_the_vocabulary(kernels: NativeKernels, token_id: int) -> None:
    weight = kernels.new_weight(Int8(), 100, 96)
    weight.fill(0, torch.randn(100, 96))
    with pytest.raises(IndexError, match="100 rows"):
        kernels.embed(weight, torch.tensor([3, token_id]), 1.0)


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
@pytest.mark.parametrize("weight_format", FORMATS[3:], ids=str)
def test_integers_cannot_stand_for_what_is_not_finite(
    kernels: NativeKernels, weight_format: WeightFormat, value: float
) -> None:
    rows = torch.randn(4, 96)
    rows[2, 50] = value
    with pytest.raises(ValueError, match=r"^not finite$"):
        kernels.new_weight(weight_format, 4, 96).fill(0, rows)


def test_refuses_rows_that_do_not_fit(kernels: NativeKernels) -> None:
    weight = kernels.new_weight(Int8(), 10, 96)
    for start, shape in ((8, (3, 96)), (-1, (2, 96)), (0, (2, 95))):
        with pytest.raises(ValueError, match="do not fit"):
            weight.fill(start, torch.randn(*shape))


def test_refuses_elements_of_another_format(kernels: NativeKernels) -> None:
    integers = random_integers(Grouped(8, 32), 2, 96)
    with pytest.raises(TypeError, match="float32 matrix takes no integers"):
        kernels.new_weight(Dense(torch.float32), 2, 96).fill_quantised(0, integers)
    with pytest.raises(TypeError, match="int8"):
        kernels.new_weight(Int8(), 2, 96).fill_quantised(0, integers)
    with pytest.raises(ValueError, match="scales"):
        kernels.new_weight(Grouped(8, 96), 2, 96).fill_quantised(0, integers)


@pytest.mark.parametrize("weight_format", [Dense(torch.float64), Grouped(3, 32), Grouped(4, 64)], ids=str)
def test_refuses_formats_without_a_kernel(kernels: NativeKernels, weight_format: WeightFormat) -> None:
    with pytest.raises(ValueError, match=str(weight_format)):
        kernels.new_weight(weight_format, 10, 96)


@pytest.mark.parametrize(
    ("weight_format", "num_bytes"),
    [(Dense(torch.bfloat16), 64 * 128 * 2), (Int8(), 64 * 132), (Grouped(4, 64), 64 * (64 + 2 * 8))],
    ids=str,
)
def test_num_bytes_are_what_is_allocated(
    kernels: NativeKernels, weight_format: WeightFormat, num_bytes: int
) -> None:
    assert kernels.new_weight(weight_format, 64, 128).num_bytes == num_bytes


def test_weight_memory_is_zeroed_aligned_and_apart() -> None:
    memory = WeightMemory()
    tensors = [memory.zeros(count, torch.float32) for count in (1, 100, 1 << 24, 7, 33)]
    for value, tensor in enumerate(tensors, start=1):
        assert tensor.data_ptr() % 64 == 0
        assert not tensor.any()
        tensor.fill_(value)
    assert [tensor[0].item() for tensor in tensors] == [1, 2, 3, 4, 5]
    assert [tensor[-1].item() for tensor in tensors] == [1, 2, 3, 4, 5]


def _part(tensor: torch.Tensor | None, start: int, end: int) -> torch.Tensor | None:
    return None if tensor is None else tensor[start:end]
