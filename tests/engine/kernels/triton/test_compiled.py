"""The kernels of a 1B Llama's decode step, compiled for Hopper without one: what became of them."""

from __future__ import annotations

import json
import os
import subprocess
import sys

import pytest

MULTIPROCESSORS, REGISTERS, SHARED_BYTES = 132, 65536, 227 * 1024
SCRIPT = """
import dataclasses, json, sys, torch
from rhizome_engine.kernels.triton import configurations
from rhizome_engine.kernels.triton.configurations import ProductShape, configuration
from rhizome_engine.kernels.triton.triton_kernels import TritonKernels
from rhizome_engine.layers.linear import Linear
from rhizome_engine.layers.rms_norm import RMSNorm
from rhizome_engine.weights.format import Dense
from rhizome_testing.compiled_kernels import compiling

meta, dtype = torch.device("meta"), torch.bfloat16
kernels, norm = TritonKernels(meta, dtype), RMSNorm(2048, 1e-5, device=meta)

def linear(outputs, inputs):
    return Linear(kernels, Dense(dtype), inputs, {"part": outputs})

def x(rows, size):
    return torch.empty(rows, size, dtype=dtype, device=meta)

with compiling() as launches:
    for rows in (1, 8):
        kernels.linear(x(rows, 2048), linear(3072, 2048), norm)
        kernels.gated_linear(x(rows, 2048), linear(16384, 2048), "silu", norm)
        kernels.add_linear(x(rows, 2048), x(rows, 8192), linear(2048, 8192))
    shape = ProductShape(True, 2048, 2048, 2, False)
    early = dataclasses.replace(configuration(shape), dependent_launch=True)
    configurations.OVERRIDES[shape] = early
    kernels.add_linear(x(1, 2048), x(1, 2048), linear(2048, 2048))
    kernels.embed(linear(128256, 2048).weight, torch.empty(1, dtype=torch.int64, device=meta), 1.0)
    kernels.gated_linear(x(300, 2048), linear(16384, 2048), "silu", norm)
    kernels.add_norm(x(300, 2048), x(300, 2048), norm)
    # The matrices of 8B.
    wide_norm = RMSNorm(4096, 1e-5, device=meta)
    for rows in (1, 8):
        kernels.gated_linear(x(rows, 4096), linear(28672, 4096), "silu", wide_norm)
        kernels.add_linear(x(rows, 4096), x(rows, 14336), linear(4096, 14336))
json.dump([dataclasses.asdict(launch) for launch in launches], sys.stdout)
"""


@pytest.fixture(scope="module")
def launches(tmp_path_factory):
    done = subprocess.run(
        [sys.executable, "-c", SCRIPT],
        env={
            **os.environ,
            "TRITON_INTERPRET": "0",
            "TRITON_CACHE_DIR": str(tmp_path_factory.mktemp("cache")),
        },
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


def loads(launch):
    """Loads from memory that are not 16 bytes wide, and those that are."""
    found = [line for line in launch["ptx"].splitlines() if "ld.global" in line]
    wide = [line for line in found if ".v4.b32" in line]
    return len(found) - len(wide), len(wide)


def test_an_operation_is_one_launch_but_for_split_rows(launches):
    assert [launch["name"] for launch in launches] == [
        *["_vector_product"] * 3,
        *["_tile_product", "_finish", "_tile_product", "_tile_product", "_finish"],
        *["_vector_product", "_gather", "_norm", "_gate", "_norm"],
        *["_vector_product"] * 2,
        *["_tile_product", "_tile_product", "_finish"],
    ]


def test_nothing_spills_and_programs_fit_beside_each_other(launches):
    for launch in launches:
        assert launch["spilled_bytes"] <= 8, launch["name"]
        programs_by_registers = REGISTERS // (launch["registers"] * 32 * launch["num_warps"])
        assert programs_by_registers >= 4, launch["name"]
        assert launch["shared_bytes"] * 2 <= SHARED_BYTES, launch["name"]


def test_one_row_is_read_in_pieces_of_16_bytes_by_two_programs_or_more_for_each_multiprocessor(launches):
    projection, gate_up, down = launches[:3]
    for launch in (projection, gate_up):
        assert loads(launch)[0] == 0
        assert launch["grid"][0] >= 2 * MULTIPROCESSORS
    assert loads(down)[0] <= 4, "the residual's elements"
    assert down["grid"][0] >= 2 * MULTIPROCESSORS
    assert "L2::evict_first" in projection["ptx"]


def test_several_rows_are_multiplied_by_tensor_cores_from_loads_under_way(launches):
    for launch in launches[3:8]:
        if launch["name"] == "_tile_product":
            assert "mma.sync" in launch["ptx"]
            assert "cp.async" in launch["ptx"]
            assert launch["grid"][0] * launch["grid"][1] >= MULTIPROCESSORS


def test_a_dependent_launch_waits_for_x_only(launches):
    early = launches[8]["ptx"]
    matrix, wait = early.index("evict_first.L2::cache_hint"), early.index("griddepcontrol.wait")
    assert early.index("griddepcontrol.launch_dependents") < matrix < wait
    assert "griddepcontrol" not in launches[0]["ptx"]
