"""How products are cut: what the table promises for the shapes that matter."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import triton

from rhizome_engine.kernels.triton import configurations
from rhizome_engine.kernels.triton.configurations import (
    MULTIPROCESSORS,
    Configuration,
    ProductShape,
    candidates,
    configuration,
)

# outputs, inputs, gated: Llama 3.2 1B, then Llama 3 8B
LAYERS = [
    (3072, 2048, False),
    (2048, 2048, False),
    (8192, 2048, True),
    (2048, 8192, False),
    (128256, 2048, False),
    (6144, 4096, False),
    (4096, 4096, False),
    (14336, 4096, True),
    (4096, 14336, False),
    (128256, 4096, False),
]
layers = pytest.mark.parametrize(("outputs", "inputs", "gated"), LAYERS)


@pytest.fixture(autouse=True)
def compiled(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """The table as it is where kernels are compiled."""
    monkeypatch.setattr(configurations, "interpreted", lambda: False)
    monkeypatch.setattr(configurations, "_ROWS_OF_A_THREAD", 4)
    monkeypatch.setattr(configurations, "_NARROW_TILE", 32)
    monkeypatch.setattr(configurations, "_WIDE_TILE", 64)
    configurations._by_rule.cache_clear()
    yield
    configurations._by_rule.cache_clear()


def programs(shape: ProductShape, how: Configuration) -> int:
    return triton.cdiv(shape.outputs, how.block_n) * how.split_k


@layers
def test_one_row_has_four_pieces_of_16_bytes_in_every_thread(outputs: int, inputs: int, gated: bool) -> None:
    shape = ProductShape(True, outputs, inputs, 2, gated)
    how = configuration(shape)
    tile_bytes = how.block_n * (1 + gated) * how.block_k * 2
    assert tile_bytes == 4 * 16 * 32 * how.num_warps
    assert programs(shape, how) >= 2 * MULTIPROCESSORS
    assert inputs % how.block_k == 0


@layers
def test_several_rows_keep_most_multiprocessors_busy(outputs: int, inputs: int, gated: bool) -> None:
    shape = ProductShape(False, outputs, inputs, 2, gated)
    how = configuration(shape)
    assert programs(shape, how) >= MULTIPROCESSORS
    assert how.num_stages * (16 + how.block_n * (1 + gated)) * how.block_k * 2 <= 100 * 1024, "two programs"


@pytest.mark.parametrize("one_row", [True, False])
@pytest.mark.parametrize("itemsize", [1, 2, 4])
@pytest.mark.parametrize(("outputs", "inputs"), [(1, 1), (7, 64), (576, 576), (49152, 576), (5120, 3584)])
def test_any_shape_is_cut_into_powers_of_two(one_row: bool, itemsize: int, outputs: int, inputs: int) -> None:
    for gated in (False, True):
        shape = ProductShape(one_row, outputs, inputs, itemsize, gated)
        for how in candidates(shape):
            for size in (how.block_n, how.block_k, how.num_warps, how.split_k):
                assert size >= 1
                assert size & (size - 1) == 0, how
            if not one_row:
                assert how.block_n >= 16
                assert how.block_k >= 16


@layers
def test_a_benchmark_has_alternatives_and_what_it_finds_is_taken(
    monkeypatch: pytest.MonkeyPatch, outputs: int, inputs: int, gated: bool
) -> None:
    for one_row in (True, False):
        shape = ProductShape(one_row, outputs, inputs, 2, gated)
        found = candidates(shape)
        assert found[0] == configuration(shape)
        assert len(found) == len(set(found))
        assert 5 <= len(found) <= 100
        monkeypatch.setitem(configurations.OVERRIDES, shape, found[-1])
        assert configuration(shape) == found[-1]
