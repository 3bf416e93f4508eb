"""The C++ kernels in every variant that this machine can compile and run."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch

from rhizome_engine.kernels.native import build
from rhizome_engine.kernels.native.build import BuildError, Variant
from rhizome_engine.kernels.native.library import Library, cpu_flags, find_library, open_library
from rhizome_engine.kernels.native.native_kernels import NativeKernels


def opened(variant: Variant) -> Iterator[Library]:
    if not variant.cpu_flags <= cpu_flags():
        pytest.skip(f"this processor has no {variant.name}")
    try:
        compiler = build.find_compiler()
    except BuildError as error:
        pytest.skip(str(error))
    if not build.knows(compiler, variant):
        pytest.skip(f"{compiler} is older than {variant.name}")
    found = open_library(find_library(variant), variant)
    found.set_num_threads(2)
    yield found
    found.set_num_threads(1)


@pytest.fixture(scope="session", params=build.VARIANTS, ids=lambda variant: variant.name)
def library(request: pytest.FixtureRequest) -> Iterator[Library]:
    yield from opened(request.param)


@pytest.fixture(scope="session")
def bfloat16_library() -> Iterator[Library]:
    """The one that multiplies bfloat16."""
    yield from opened(build.VARIANTS[0])


@pytest.fixture
def kernels(library: Library) -> NativeKernels:
    torch.manual_seed(0)
    return NativeKernels(library)
