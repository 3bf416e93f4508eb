"""Kernels compiled ahead: the same that the first steps launch, and a start that goes on whatever happens."""

from __future__ import annotations

import json
import os
import subprocess
import sys

import pytest

from rhizome_engine.runner import ModelRunner, model_runner
from rhizome_engine.start_times import StartTimes
from rhizome_testing.checkpoints import LlamaShape, write_llama_checkpoint

SCRIPT = """
import contextlib, functools, json, logging, sys, threading, torch, triton
from rhizome_engine.attention.triton import backend
from rhizome_engine.core.warm_up import PROMPT_TOKENS, warm_up
from rhizome_engine.kernels.triton import compile_ahead, quantised, runtime, triton_kernels
from rhizome_engine.kernels.triton.norms import rms_norm
from rhizome_engine.runner import ModelRunner, first_kernels, model_runner, step_computer
from rhizome_engine.sampling import sampler, staging
from rhizome_engine.sampling.triton import choose, late_tokens, penalties
from rhizome_engine.scheduler.config import SchedulerConfig
from rhizome_testing.compiled_kernels import _TargetOnly

logging.basicConfig(level=logging.INFO, format="%(levelname)s %(message)s")
triton.runtime.driver.set_active(_TargetOnly(90))
# The real runner goes the ways of a GPU on the CPU, where arrays are packed in one copy and kernels are ours.
# Modules with kernels are imported by now: none takes this for the interpreter.
runtime.interpreted = lambda: True
sampler.to_device = backend.to_device = staging.packed_copy
step_computer.sample = functools.partial(step_computer.sample, fused=True)


@contextlib.contextmanager
def requested():
    found = set()

    def ask(*, key, fn, **_):
        found.add((fn.name.split(".")[-1], key))
        return True  # neither compile nor launch

    triton.knobs.runtime.jit_cache_hook = ask
    yield found
    triton.knobs.runtime.jit_cache_hook = None


def of_first_steps(quantization):
    makers = []
    model_runner.compile_first_kernels = lambda *arguments: makers.append(arguments[-1])
    runner = ModelRunner(
        sys.argv[1], device="cpu", dtype="bfloat16", kernels="triton", attention="triton", graphs="rerun",
        quantization=quantization, num_pages=40, page_size=16, max_num_tokens=128, max_num_rows=4,
        num_threads=1,
    )
    empty, torch.empty = torch.empty, torch.zeros  # nothing is computed: tokens shall be tokens
    with requested() as real:
        config = SchedulerConfig(max_batch_size=4, max_step_tokens=128, overlap=True)
        warm_up(runner, config, PROMPT_TOKENS)
        while runner.use_idle_time():
            pass
    torch.empty = empty
    with requested() as ahead, compile_ahead.requests_only():
        first_kernels.walk(makers[0])
    names = sorted({name for name, _ in real})
    return {"names": names, "missing": sorted(real - ahead), "extra": sorted(ahead - real)}


said = {"steps": {name: of_first_steps(name) for name in ("none", "int8", "fp8")}}
said["imported"] = sorted({"torch._dynamo", "sympy"} & set(sys.modules))

meta, cpu = torch.device("meta"), torch.device("cpu")
compiled, launchers = [], []
triton.knobs.compilation.listener = lambda *, src, cache_hit, **_: compiled.append((src.name, cache_hit))
_TargetOnly.launcher_cls = staticmethod(lambda src, metadata: launchers.append(src.name))


def norm(size):
    rms_norm(torch.empty(3, size, device=meta), torch.empty(size, device=meta), 1e-5)


def walk():
    for size in (64, 256, 64):
        norm(size)
    raise RuntimeError("no such thing on meta")


ahead = compile_ahead.CompileAhead(walk, cpu, threads=2)
ahead.wait()
said["compiled"], said["launchers"], said["count"] = list(compiled), list(launchers), ahead.num_kernels
with compile_ahead.requests_only():
    norm(64)  # found in memory, and not launched
said["later"] = compiled[len(said["compiled"]):]

others, run = [], compile_ahead.JITFunction.run
compile_ahead.JITFunction.run = lambda self, *args, warmup, **kwargs: others.append(warmup)
with compile_ahead.requests_only():
    thread = threading.Thread(target=norm, args=(64,))
    thread.start()
    thread.join()
    norm(64)
compile_ahead.JITFunction.run = run
said["warmup"] = others
json.dump(said, sys.stdout)
"""


@pytest.fixture(scope="module")
def said(tmp_path_factory):
    folder = tmp_path_factory.mktemp("ahead")
    shape = LlamaShape(num_hidden_layers=2, hidden_size=128, intermediate_size=256)
    checkpoint = write_llama_checkpoint(folder / "model", shape)
    environment = {**os.environ, "TRITON_INTERPRET": "0", "TRITON_CACHE_DIR": str(folder / "cache")}
    command = [sys.executable, "-c", SCRIPT, str(checkpoint)]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return {**json.loads(done.stdout), "log": done.stderr}


def test_what_is_asked_for_ahead_is_what_the_first_steps_launch(said):
    for quantization, found in said["steps"].items():
        assert found["missing"] == [], quantization
        assert found["extra"] == [], quantization
        assert {"attention_decode", "attention_extend", "_norm", "sampling_decide"} <= set(found["names"])


def test_the_walk_does_not_import_pytorchs_compiler(said):
    assert said["imported"] == []


def test_kernels_are_compiled_once_and_then_found(said):
    assert said["compiled"] == [["_norm", False]] * 2
    assert said["launchers"] == ["_norm"] * 2
    assert said["count"] == 2
    assert said["later"] == []


def test_launches_of_other_threads_are_launches(said):
    assert said["warmup"] == [False, True]


def test_a_walk_that_fails_is_a_line_in_the_log(said):
    lines = [line for line in said["log"].splitlines() if "compiled" in line]
    assert lines[0] == "INFO not all kernels were compiled ahead: RuntimeError: no such thing on meta"
    assert lines[1].startswith("INFO 2 kernels compiled, or found on disk, in ")
    assert "Traceback" not in said["log"]


def test_a_start_waits_for_kernels_and_says_how_long(tmp_path, monkeypatch):
    waited = []

    class Compiling:
        def wait(self):
            waited.append(True)

    monkeypatch.setattr(model_runner, "compile_first_kernels", lambda *_: Compiling())
    times = StartTimes()
    checkpoint = write_llama_checkpoint(tmp_path / "model", LlamaShape(num_hidden_layers=1))
    ModelRunner(checkpoint, device="cpu", num_pages=8, num_threads=1, times=times)
    assert waited == [True]
    assert [stage.name for stage in times.stages][-2:] == ["KV pool", "kernels"]


def test_nothing_is_compiled_ahead_on_a_cpu(tmp_path):
    times = StartTimes()
    checkpoint = write_llama_checkpoint(tmp_path / "model", LlamaShape(num_hidden_layers=1))
    ModelRunner(checkpoint, device="cpu", num_pages=8, num_threads=1, times=times)
    assert "kernels" not in [stage.name for stage in times.stages]
