"""The kernels of a step with 128,256 tokens, compiled for Hopper without one: what became of them."""

from __future__ import annotations

import json
import os
import subprocess
import sys

SCRIPT = """
import dataclasses, json, sys, torch
from rhizome_engine.sampling.device_sampling import DeviceSampling
from rhizome_engine.sampling.token_table import TokenTable
from rhizome_engine.sampling.triton.choose import choose_edited
from rhizome_engine.sampling.triton.late_tokens import fill_late
from rhizome_engine.sampling.triton.normalisers import log_normalisers
from rhizome_engine.sampling.triton.penalties import penalise
from rhizome_testing.compiled_kernels import compiling

def of(dtype):
    return torch.empty(32, dtype=dtype, device="meta")

logits = torch.empty(32, 128256, device="meta")
integers = ("slots", "positions", "num_prompt", "seeds", "top_k")
types = (torch.int64 if name in integers else torch.float32 for name in DeviceSampling._fields)
settings = DeviceSampling(*map(of, types))
table = TokenTable(256, 131072, torch.device("meta"))
with compiling() as launches:
    penalise(logits, settings, table)
    choose_edited(logits, settings, table, None)
    fill_late(settings.slots, settings.positions, of(torch.int32), table.tokens)
    log_normalisers(logits, settings.slots)
json.dump([dataclasses.asdict(launch) for launch in launches], sys.stdout)
"""


def test_every_kernel_compiles_and_hardly_spills(tmp_path):
    environment = {**os.environ, "TRITON_INTERPRET": "0", "TRITON_CACHE_DIR": str(tmp_path)}
    command = [sys.executable, "-c", SCRIPT]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    launches = {launch["name"]: launch for launch in json.loads(done.stdout)}
    assert list(launches) == [
        *("_count_for_penalties", "_apply_penalties", "sampling_scan", "sampling_decide"),
        *("_fill_late", "_log_sums"),
    ]
    assert launches["sampling_scan"]["grid"] == [32, 63]
    assert launches["sampling_decide"]["grid"] == [32]
    for launch in launches.values():
        assert launch["spilled_bytes"] <= 32, launch["name"]
        assert launch["shared_bytes"] <= 96 * 1024, launch["name"]
    scan = launches["sampling_scan"]
    assert scan["registers"] * 128 * 5 <= 65536  # five programs and more for each multiprocessor
    # Four logits at once, and the logarithm that is exact near 1 instead of the fast one.
    assert "ld.global.v4.b32" in scan["ptx"] and "lg2.approx" not in scan["ptx"]
