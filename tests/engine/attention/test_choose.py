"""Which back end serves: what is chosen, what is refused, and what both say."""

from __future__ import annotations

import pytest
import torch
from tests.engine.attention.flash_functions import FLASH_2, FLASH_4
from tests.engine.attention.scene import CPU, Scene, Shape

from rhizome_engine.attention import flash_packages
from rhizome_engine.attention.choose import choose_attention, make_attention, probe
from rhizome_engine.attention.flash_attn import FlashAttnBackend
from rhizome_engine.attention.flash_packages import FlashFunctions
from rhizome_engine.kernels.native.library import load_library
from rhizome_engine.kernels.torch_kernels import TorchKernels
from rhizome_engine.kernels.triton import runtime

CUDA = torch.device("cuda", 0)
NOTHING = FlashFunctions(None, None, None, "flash-attn: ModuleNotFoundError: No module named 'flash_attn'")


def choice(name="auto", **changes):
    facts = {
        "device": CPU,
        "dtype": torch.float32,
        "page_size": 16,
        "head_dim": 64,
        "native_kernels": load_library() is not None,
    }
    return probe(name, **facts | changes)


def test_an_unknown_back_end_is_refused_with_the_known_ones():
    with pytest.raises(ValueError, match=r"must be auto, native, flash_attn, triton, sdpa, not 'magic'"):
        choice("magic")


@pytest.mark.skipif(load_library() is None, reason="no CPU kernels for this processor")
def test_a_cpu_with_its_own_kernels_takes_them_where_they_can_read_the_pool():
    assert str(choice()) == "native (the fastest here)"
    assert str(choice(head_dim=12)) == "sdpa (native: it needs heads of 8, 16, ... 256, not 12)"
    assert "cannot read a KV pool of torch.float64" in choice(dtype=torch.float64).reason
    assert str(choice(native_kernels=False)) == "sdpa (for cpu without own kernels)"
    assert choice().in_place
    assert not choice(native_kernels=False).in_place


def pretend_gpu(monkeypatch, found, why_not_triton=None):
    """What a GPU's machine would answer; the choice itself is the real one."""
    monkeypatch.setattr(runtime, "why_not", lambda device: why_not_triton)
    monkeypatch.setattr(flash_packages, "find_functions", lambda device: found)


def gpu_choice(name="auto", **changes):
    return choice(name, **{"device": CUDA, "dtype": torch.bfloat16, "native_kernels": False} | changes)


def test_a_gpu_takes_flash_attn_where_it_can_else_triton_else_sdpa(monkeypatch):
    pretend_gpu(monkeypatch, FLASH_2)
    assert str(gpu_choice()) == "flash_attn (the fastest here, with own decode for pages of 16)"
    assert str(gpu_choice(page_size=512)) == "flash_attn (the fastest here)"
    assert gpu_choice().in_place
    for changes, because in (
        ({"dtype": torch.float32}, "flash-attn reads a KV pool of bfloat16 or float16, not torch.float32"),
        ({"head_dim": 68}, "flash-attn needs heads of 8, 16, ... 256, not 68"),
    ):
        chosen = gpu_choice(**changes)
        assert (chosen.name, chosen.reason) == ("triton", f"the fastest here; flash_attn: {because}")
        assert chosen.in_place
    pretend_gpu(monkeypatch, NOTHING)
    assert gpu_choice().name == "triton"
    assert "No module named 'flash_attn'" in gpu_choice().reason
    assert gpu_choice(head_dim=512).name == "sdpa"
    pretend_gpu(monkeypatch, FLASH_2, "triton is not installed")
    assert str(gpu_choice()) == "sdpa (flash_attn: triton is not installed; triton: triton is not installed)"


def test_what_was_asked_for_is_taken_or_refused_with_the_reason(monkeypatch):
    with pytest.raises(ValueError, match=r"flash_attn attention was asked for, but .*: .* a CUDA"):
        choice("flash_attn")
    pretend_gpu(monkeypatch, NOTHING)
    assert str(gpu_choice("triton")) == "triton (asked for)"
    with pytest.raises(ValueError, match="but cannot run here: flash-attn: ModuleNotFoundError"):
        gpu_choice("flash_attn")
    with pytest.raises(ValueError, match="its kernels are for CPUs, not cuda"):
        gpu_choice("native")
    monkeypatch.setattr(runtime, "why_not", lambda device: "triton kernels need a GPU")
    with pytest.raises(ValueError, match=r"triton attention was asked for, but .* need a GPU"):
        choice("triton")
    assert str(choice("sdpa")) == "sdpa (asked for)"


def test_triton_needs_a_compiler_on_a_gpu(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: (9, 0))
    monkeypatch.delenv("TRITON_INTERPRET", raising=False)
    monkeypatch.delenv("CC", raising=False)
    monkeypatch.setenv("PATH", "/nowhere")
    because = "triton needs a C compiler, gcc or clang, to launch its kernels"
    assert str(gpu_choice()) == f"sdpa (flash_attn: {because}; triton: {because})"
    monkeypatch.setenv("CC", "/some/cc")
    assert gpu_choice("triton").name == "triton"


@pytest.mark.skipif(torch.cuda.is_available(), reason="Triton is not interpreted beside a GPU")
def test_the_choice_is_what_is_made():
    scene = Scene(Shape(), [(1, 4)])
    kernels = TorchKernels(CPU, torch.float32)
    for name in ("triton", "sdpa", "auto"):
        made = choose_attention(name, scene.kv, scene.shape.ropes(), kernels)
        assert made.name == ("sdpa" if name == "auto" else name)
    assert make_attention(choice("native", head_dim=16), scene.kv, []).name == "native"


@pytest.mark.skipif(torch.cuda.is_available(), reason="stands in for the packages on a CPU")
def test_flash_attn_is_refused_for_pools_it_cannot_read():
    for shape, functions, message in (
        (Shape(), FLASH_2, "bfloat16 or float16, not torch.float32"),
        (Shape(pool=torch.float16, head_dim=12), FLASH_4, r"heads of 8, 16, \.\.\. 256, not 12"),
        (Shape(pool=torch.float16), NOTHING, "No module named 'flash_attn'"),
        (Shape(pool=torch.float16), None, "flash-attn needs a CUDA device"),
    ):
        with pytest.raises(ValueError, match=f"flash_attn attention cannot run: .*{message}"):
            FlashAttnBackend(Scene(shape, [(1, 4)]).kv, [], functions)
