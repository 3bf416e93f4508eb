"""The pool of threads: the same results with any number of threads, from any caller, after a fork."""

from __future__ import annotations

import subprocess
import sys
import threading
import time
from collections.abc import Iterator

import psutil
import pytest
import torch

from rhizome_engine.kernels.native.library import Library
from rhizome_engine.kernels.native.native_kernels import NativeKernels
from rhizome_engine.layers.linear import Linear
from rhizome_engine.weights.format import Dense, Int8

pytestmark = pytest.mark.timeout(600)  # the first one may compile, beside others on few cores

FORK = """
import os, sys, torch
from pathlib import Path
from rhizome_engine.kernels.native.build import VARIANTS
from rhizome_engine.kernels.native.library import open_library
from rhizome_engine.kernels.native.native_kernels import NativeKernels
from rhizome_engine.layers.linear import Linear
from rhizome_engine.weights.format import Int8

library = open_library(Path(sys.argv[1]), VARIANTS[0])
library.set_num_threads(3)
kernels = NativeKernels(library)
linear = Linear(kernels, Int8(), 64, {"part": 640})
rows = torch.arange(640 * 64).view(640, 64) % 17 - 8.0
linear.weight.fill(0, rows)
x = torch.ones(5, 64)
before = kernels.linear(x, linear).clone()
child = os.fork()
same = all(torch.equal(kernels.linear(x, linear), before) for _ in range(100))
if child == 0:
    os._exit(0 if same else 1)
status = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
assert same and status == 0, (same, status)
print("both computed")
"""


@pytest.fixture(autouse=True)
def two_threads_afterwards(library: Library) -> Iterator[None]:
    yield
    library.set_num_threads(2)


def make_linear(kernels: NativeKernels) -> Linear:
    linear = Linear(kernels, Int8(), 192, {"part": 700})
    linear.weight.fill(0, torch.randn(700, 192))
    return linear


@pytest.mark.parametrize("rows", [1, 50])
def test_results_do_not_depend_on_the_number_of_threads(library: Library, rows: int) -> None:
    kernels = NativeKernels(library)
    linear = make_linear(kernels)
    x = torch.randn(rows, 192)
    library.set_num_threads(1)
    expected = kernels.linear(x, linear).clone()
    for threads in (2, 4, 7, 1, 3):
        library.set_num_threads(threads)
        assert library.num_threads() == threads
        for _ in range(20):
            assert torch.equal(kernels.linear(x, linear), expected)


def test_at_least_one_thread_takes_part(library: Library) -> None:
    library.set_num_threads(0)
    assert library.num_threads() == 1


@pytest.mark.parametrize("threads", [1, 2, 4])
def test_callers_of_several_python_threads_get_their_own_results(library: Library, threads: int) -> None:
    library.set_num_threads(threads)
    wrong: list[str] = []

    def call(seed: int) -> None:
        kernels = NativeKernels(library)
        linear = make_linear(kernels)
        dense = Linear(kernels, Dense(torch.float32), 192, {"part": 700})
        dense.weight.fill(0, linear.weight.to_dense())
        for rows in (1, 40, 3):
            x = torch.randn(rows, 192, generator=torch.Generator().manual_seed(seed))
            for each in (linear, dense):
                first = kernels.linear(x, each).clone()
                if any(not torch.equal(kernels.linear(x, each), first) for _ in range(30)):
                    wrong.append(f"caller {seed}, {rows} rows")

    callers = [threading.Thread(target=call, args=(seed,)) for seed in range(4)]
    for caller in callers:
        caller.start()
    for caller in callers:
        caller.join(timeout=60)
    assert not any(caller.is_alive() for caller in callers)
    assert wrong == []


def test_workers_wake_up_after_a_pause(library: Library) -> None:
    kernels = NativeKernels(library)
    linear = make_linear(kernels)
    x = torch.randn(8, 192)
    expected = kernels.linear(x, linear).clone()
    for pause_s in (0, 1e-5, 1e-4, 1e-3, 1e-2) * 4:
        time.sleep(pause_s)
        assert torch.equal(kernels.linear(x, linear), expected)


def test_workers_sleep_between_steps(library: Library) -> None:
    library.set_num_threads(4)
    kernels = NativeKernels(library)
    kernels.linear(torch.randn(50, 192), make_linear(kernels))
    process = psutil.Process()
    idle_cpu_s = []
    for _ in range(5):
        before = process.cpu_times()
        time.sleep(0.1)
        after = process.cpu_times()
        idle_cpu_s.append(after.user + after.system - before.user - before.system)
    assert min(idle_cpu_s) < 0.05  # spinning, the three of them would take 0.1 s at the very least


def test_a_forked_child_starts_its_own_workers(library: Library) -> None:
    done = subprocess.run(
        [sys.executable, "-c", FORK, str(library.path)],
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert (done.returncode, done.stdout) == (0, "both computed\n"), done.stderr
