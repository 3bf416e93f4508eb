"""Every back end against the same reference: page sizes, ragged steps with prefixes, what layers ask for.

Where there is a GPU, its back ends run there; elsewhere Triton is interpreted and flash-attn written out.
"""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from tests.engine.attention.flash_functions import BOTH, FLASH_2, FLASH_4
from tests.engine.attention.scene import CPU, Scene, Shape

from rhizome_engine.attention import flash_attn
from rhizome_engine.attention.flash_attn import FlashAttnBackend
from rhizome_engine.attention.flash_packages import find_functions
from rhizome_engine.attention.native import NativeBackend
from rhizome_engine.attention.sdpa import SdpaBackend
from rhizome_engine.attention.triton.backend import TritonBackend

GPU = torch.device("cuda", 0) if torch.cuda.is_available() else CPU
MIXED = [(1, 17), (20, 20), (1, 64), (5, 70)]
BF16, F16, F32 = torch.bfloat16, torch.float16, torch.float32
LAYERS = {
    "plain": Shape(),
    "no rotation, one head each": Shape(num_heads=2, rotary_fraction=None),
    "norms, three share": Shape(num_heads=3, num_kv_heads=1, norms=True, rotary_fraction=0.5),
    "window, eight share": Shape(num_heads=8, num_kv_heads=1, window=9),
    "capped, odd width": Shape(num_heads=2, num_kv_heads=1, head_dim=24, softcap=2.0),
    "all, half precision": Shape(
        window=40, softcap=5.0, norms=True, rotary_fraction=0.5, pool=F16, activations=F16
    ),
    "bfloat16 pool": Shape(num_heads=8, pool=BF16, activations=F32, norms=True),
    "bfloat16": Shape(num_heads=4, num_kv_heads=1, pool=BF16, activations=BF16, window=20),
}

ON_ALL_PAGES = ("plain", "window, eight share", "all, half precision")


@pytest.fixture(autouse=True)
def _one_thread() -> None:
    torch.set_num_threads(1)


def attend(backend, scene):
    return backend.plan(scene.inputs).attend(scene.shape.layer(scene.device), scene.qkv)


def check(make, shape, rows, device=CPU):
    scene = Scene(shape, rows, device)
    expected = scene.expected()
    scene.check(attend(make(scene.kv, shape.ropes(device)), scene), expected)


@pytest.mark.parametrize("page_size", [1, 16, 256])
@pytest.mark.parametrize("name", LAYERS)
@pytest.mark.parametrize("make", [SdpaBackend, NativeBackend], ids=["sdpa", "native"])
def test_back_ends_of_cpus(make, name, page_size):
    shape = replace(LAYERS[name], page_size=page_size)
    if make is NativeBackend and shape.activations != F32:
        shape = replace(shape, activations=F32)
    check(make, shape, MIXED)


@pytest.mark.parametrize(
    ("name", "page_size"),
    [(name, size) for name in LAYERS for size in (1, 16, 256) if size == 16 or name in ON_ALL_PAGES],
)
def test_triton(name, page_size):
    check(TritonBackend, replace(LAYERS[name], page_size=page_size), MIXED, GPU)


@pytest.mark.parametrize("page_size", [3, 32, 64, 128])
def test_triton_at_other_page_sizes(page_size):
    shape = Shape(num_heads=2, num_kv_heads=1, page_size=page_size)
    check(TritonBackend, shape, [(1, 150), (4, 70)], GPU)


@pytest.mark.parametrize("head_dim", [64, 80, 96, 128, 256])
def test_triton_with_heads_of_any_width(head_dim):
    shape = Shape(num_heads=2, num_kv_heads=1, head_dim=head_dim, norms=True)
    check(TritonBackend, shape, [(1, 35), (9, 20)], GPU)


@settings(max_examples=5)
@given(
    rows=st.lists(
        st.integers(1, 40).flatmap(
            lambda new: st.tuples(st.sampled_from([1, new]), st.integers(new, new + 90))
        ),
        min_size=1,
        max_size=3,
    ),
    page_size=st.sampled_from([1, 16, 256]),
    window=st.sampled_from([0, 0, 1, 30]),
)
def test_triton_on_random_steps(rows, page_size, window):
    check(TritonBackend, Shape(page_size=page_size, num_kv_heads=1, window=window), rows, GPU)


@pytest.mark.skipif(torch.cuda.is_available(), reason="stands in for the packages on a CPU")
@pytest.mark.parametrize(
    ("name", "functions", "page_size"),
    [
        ("all, half precision", FLASH_2, 1),
        ("all, half precision", FLASH_2, 16),
        ("all, half precision", FLASH_2, 256),
        ("all, half precision", FLASH_4, 16),
        ("bfloat16", FLASH_2, 16),
        ("bfloat16", FLASH_4, 256),
        ("bfloat16", BOTH, 256),
    ],
    ids=["2-1", "2-16", "2-256", "4-16", "2-16-bfloat16", "4-256-bfloat16", "both-256-bfloat16"],
)
def test_flash_attn_around_functions_written_out(name, functions, page_size):
    def make(kv, ropes):
        return FlashAttnBackend(kv, ropes, functions)

    check(make, replace(LAYERS[name], page_size=page_size), MIXED)


@pytest.mark.skipif(torch.cuda.is_available(), reason="stands in for the packages on a CPU")
def test_flash_attn_copies_contexts_in_several_calls_where_they_are_long(monkeypatch):
    calls = []

    def counted(q, k, *rest, **named):
        calls.append(len(k))
        return FLASH_2.varlen(q, k, *rest, **named)

    monkeypatch.setattr(flash_attn, "MAX_GATHERED_TOKENS", 80)
    functions = FLASH_2._replace(varlen=counted)
    shape = Shape(num_heads=2, num_kv_heads=1, pool=F16, activations=F16)
    rows = [(5, 70), (20, 20), (1, 9), (9, 60), (2, 90)]
    check(lambda kv, ropes: FlashAttnBackend(kv, ropes, functions), shape, rows)
    assert calls == [70, 20 + 60, 90]


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@pytest.mark.parametrize("page_size", [1, 16, 256])
@pytest.mark.parametrize("name", ["all, half precision", "bfloat16"])
def test_flash_attn_itself(name, page_size):
    functions = find_functions(GPU)
    if functions.varlen is None and functions.hopper_varlen is None:
        pytest.skip(functions.reason)
    shape = replace(LAYERS[name], page_size=page_size, head_dim=64)
    check(FlashAttnBackend, shape, MIXED, GPU)
