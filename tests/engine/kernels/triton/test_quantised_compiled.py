"""The kernels of quantised matrices, compiled for Hopper without one: what became of them."""

from __future__ import annotations

import json
import os
import subprocess
import sys

import pytest

MULTIPROCESSORS, SHARED_BYTES = 132, 227 * 1024
SCRIPT = """
import dataclasses, json, sys, torch
from rhizome_engine.kernels.triton.configurations import OVERRIDES, Configuration, ProductShape
from rhizome_engine.kernels.triton.quantised import new_quantised_weight
from rhizome_engine.weights.format import Fp8, Grouped, Int8
from rhizome_testing.compiled_kernels import compiling

meta, dtype = torch.device("meta"), torch.bfloat16
gain = torch.empty(2048, device=meta)

def weight(weight_format, outputs, inputs):
    return new_quantised_weight(weight_format, outputs, inputs, meta, dtype)

def x(rows, size):
    return torch.empty(rows, size, dtype=dtype, device=meta)

with compiling() as launches:
    weight(Grouped(4, 128), 3072, 2048).small_product(x(1, 2048), gain=gain, eps=1e-5)
    shape = ProductShape(True, 128256, 512, 4, False)
    OVERRIDES[shape] = Configuration(8, 512, 4, dependent_launch=True)
    weight(Grouped(8, 128), 128256, 2048).small_product(x(1, 2048), gain=gain, eps=1e-5)
    weight(Fp8(), 2048, 8192).small_product(x(1, 8192), residual=x(1, 2048))
    weight(Grouped(4, 128), 2048, 8192).small_product(x(16, 8192), residual=x(16, 2048))
    weight(Int8(), 3072, 2048).product(x(64, 2048))
    weight(Fp8(), 3072, 2048).product(x(64, 2048))
    weight(Grouped(4, 128), 3072, 2048).product(x(70, 2048))
    weight(Fp8(), 128256, 2048).rows(torch.empty(2, dtype=torch.int64, device=meta), dtype)
json.dump([dataclasses.asdict(launch) for launch in launches], sys.stdout)
"""


@pytest.fixture(scope="module")
def launches(tmp_path_factory):
    cache = str(tmp_path_factory.mktemp("cache"))
    done = subprocess.run(
        [sys.executable, "-c", SCRIPT],
        env={**os.environ, "TRITON_INTERPRET": "0", "TRITON_CACHE_DIR": cache},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


def test_what_is_launched(launches):
    assert [launch["name"] for launch in launches] == [
        *["_grouped_vector_product"] * 2,
        *["_vector_product", "_grouped_tile_product"],
        *["_round_rows", "_scale_sums", "_round_rows", "_gather", "_gather"],
    ]


def test_nothing_spills_and_shared_memory_suffices(launches):
    for launch in launches:
        assert launch["spilled_bytes"] == 0, launch["name"]
        assert launch["shared_bytes"] * 2 <= SHARED_BYTES, launch["name"]


def test_one_row_is_read_in_pieces_of_16_bytes_by_programs_for_every_multiprocessor(launches):
    for launch, pieces in zip(launches[:3], (8, 8, 4), strict=True):
        lines = [line for line in launch["ptx"].splitlines() if "ld.global" in line]
        streamed = [line for line in lines if "evict_first" in line]
        assert len(streamed) >= pieces
        assert all(".v4.b32" in line for line in streamed)
        assert launch["grid"][0] >= MULTIPROCESSORS


def test_x_of_grouped_integers_does_not_go_through_shared_memory(launches):
    """Each place of x would cost two barriers; those left belong to the sums."""
    for launch in launches[:2]:
        assert launch["ptx"].count("bar.sync") <= 12


def test_a_dependent_launch_reads_weights_before_it_waits_for_x(launches):
    ptx = launches[1]["ptx"]
    assert "griddepcontrol" not in launches[0]["ptx"]
    assert ptx.index("griddepcontrol.launch_dependents") < ptx.index("evict_first")
    assert ptx.index("evict_first") < ptx.index("griddepcontrol.wait")


def test_tensor_cores_multiply_several_rows(launches):
    ptx = launches[3]["ptx"]
    assert "mma.sync" in ptx or "wgmma" in ptx
    assert "cp.async" in ptx
