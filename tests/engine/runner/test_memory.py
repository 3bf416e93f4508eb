"""The arithmetic of memory: what is planned is what is taken; what does not fit is refused with the sum."""

from __future__ import annotations

import json
import subprocess
import sys
from dataclasses import replace

import pytest
import torch

from rhizome_engine.checkpoint.loader import load_checkpoint
from rhizome_engine.memory_size import MemorySize, format_bytes
from rhizome_engine.models.decoder import Decoder
from rhizome_engine.models.registry import family_of
from rhizome_engine.runner.memory import KVBudgetError, MemoryNeeds, plan_num_pages
from rhizome_engine.runner.numerics import choose_numerics
from rhizome_engine.runner.recorded_memory import RecordedMemory
from rhizome_engine.runner.sizing import memory_needs, model_targets
from rhizome_engine.weights.choose import format_chooser
from rhizome_testing.checkpoints import LlamaShape, write_llama_checkpoint

CPU, GPU = torch.device("cpu"), torch.device("cuda", 0)
MIB = 2**20
PAGE = 64 * 1024

SHAPE = LlamaShape(
    vocab_size=4000, hidden_size=256, intermediate_size=704, num_hidden_layers=3, tie_word_embeddings=False
)
STEP = """
import json, sys, threading
import numpy as np, psutil, torch
from rhizome_engine.batch import Batch
from rhizome_engine.runner import ModelRunner
from rhizome_engine.sampling.params import SamplingParams
from rhizome_testing.sampling_batch import sampling_batch

path, quantization = sys.argv[1:]
TOKENS, ROWS, CONTEXT = 512, 4, 16384
torch.set_num_threads(1)
runner = ModelRunner(
    path, device="cpu", dtype="float32", kernels="torch", attention="sdpa", quantization=quantization,
    num_pages=CONTEXT // 16, max_num_tokens=TOKENS, max_num_rows=ROWS, num_slots=ROWS,
)

def step(start, count):
    end = start + count
    span = np.arange(start, end)
    runner.run(Batch(
        token_ids=np.zeros(count, np.int64), positions=span, slot_mapping=span,
        query_start=np.array([0, count], np.int32), context_len=np.array([end], np.int32),
        page_table=np.arange(-(-end // 16), dtype=np.int32)[None], slots=np.zeros(1, np.int64),
        sampling=sampling_batch([SamplingParams(temperature=0.7)], [end], runner.config.vocab_size, rows=[0]),
    ))

step(0, 16)  # the memory of the code itself
runner.kv.data.zero_()  # the pool takes its memory
process, done, peak = psutil.Process(), threading.Event(), 0

def watch():
    global peak
    while not done.is_set():
        peak = max(peak, process.memory_info().rss)
        done.wait(0.001)

before = process.memory_info().rss
watcher = threading.Thread(target=watch, daemon=True)
watcher.start()
step(CONTEXT - TOKENS - 1, TOKENS)
done.set()
watcher.join()
print(json.dumps({"peak": peak - before}))
"""


def needs(weights: int, workspace: int = 10 * MIB, page: int = PAGE, remedies: tuple[str, ...] = ()):
    return MemoryNeeds(
        weights=weights,
        weights_name="float32",
        workspace=lambda context: workspace + context,
        max_context=4096,
        page=page,
        page_size=16,
        remedies=lambda: remedies,
    )


def plan(wanted: MemoryNeeds, available: int, device: torch.device = CPU, **settings: object) -> int:
    return plan_num_pages(
        wanted,
        available,
        device,
        **{"num_pages": None, "kv_memory": None, "useful_pages": 10**9, **settings},
    )


def test_a_share_is_one_of_what_is_left_beside_weights_and_workspace():
    left = 100 * MIB - 40 * MIB - (10 * MIB + 4096)
    assert plan(needs(40 * MIB), 100 * MIB, kv_memory=MemorySize.parse("60%")) == int(0.6 * left) // PAGE
    assert plan(needs(40 * MIB), 100 * MIB, kv_memory=MemorySize.parse("8MiB")) == 128
    assert plan(needs(40 * MIB), 100 * MIB, num_pages=7) == 7


def test_without_a_size_a_cpu_gives_a_quarter_and_a_gpu_nearly_all():
    left = 100 * MIB - 40 * MIB - (10 * MIB + 4096)
    assert plan(needs(40 * MIB), 100 * MIB) == left // 4 // PAGE
    assert plan(needs(40 * MIB), 100 * MIB, GPU) == int(0.9 * left) // PAGE
    assert plan(needs(40 * MIB), 100 * MIB, useful_pages=5) == 5


def test_weights_that_do_not_fit_are_refused_with_what_would_need_less():
    remedies = ("--quantization int8 makes the weights 30.00 MiB", "that")
    with pytest.raises(KVBudgetError) as refused:
        plan(needs(120 * MIB, remedies=remedies), 100 * MIB)
    assert str(refused.value) == (
        "the model does not fit on cpu: 100.00 MiB available - 120.00 MiB weights (float32) - 10.00 MiB "
        "workspace = -30.00 MiB left. Free memory, or: --quantization int8 makes the weights 30.00 MiB; that"
    )


def test_a_pool_that_does_not_fit_is_refused_with_tokens_and_bytes():
    with pytest.raises(KVBudgetError) as refused:
        plan(needs(40 * MIB), 100 * MIB, num_pages=1600)
    assert "wanted 25600 tokens (1600 pages) x 4.00 KiB per token = 100.00 MiB" in str(refused.value)
    most = (100 * MIB - 40 * MIB - 10 * MIB - 4096) // 4096
    assert f"up to {most} tokens" in str(refused.value)
    assert plan(needs(40 * MIB), 100 * MIB, num_pages=most // 16) == most // 16


@pytest.mark.parametrize(
    ("text", "size"),
    [("4GiB", MemorySize(4 * 2**30)), ("512mb", MemorySize(512 * 10**6)), (77, MemorySize(77))],
)
def test_sizes_are_read_as_people_write_them(text, size):
    assert MemorySize.parse(text) == size


@pytest.mark.parametrize("text", ["", "4 apples", "0%", "101%", "x%", "-1GiB"])
def test_other_words_are_refused(text):
    with pytest.raises(ValueError, match=f"a size such as 4GiB, or a share .* not {text!r}"):
        MemorySize.parse(text)


def test_bytes_are_written_for_people():
    assert [format_bytes(size) for size in (12, 2048, 3 * MIB, -5 * 2**30)] == [
        "12 B",
        "2.00 KiB",
        "3.00 MiB",
        "-5.00 GiB",
    ]


@pytest.mark.parametrize("kernels", ["torch", "auto", "triton"])
@pytest.mark.parametrize("quantization", ["none", "int8", "int4"])
def test_what_is_planned_for_weights_is_what_they_take(tmp_path, kernels, quantization):
    checkpoint = load_checkpoint(write_llama_checkpoint(tmp_path, SHAPE))
    names = family_of(checkpoint.config.architecture).names
    numerics = choose_numerics(
        CPU, dtype="float32", kv_dtype="auto", kernels=kernels, quantization=quantization, stored="float32"
    )
    choose = format_chooser(quantization, numerics.weight_dtype, names)
    sizes = model_targets(checkpoint.config, names, numerics.weight_dtype, choose, numerics.kernels)
    planned = sizes.num_bytes
    taken = Decoder(checkpoint.config, names, numerics.kernels, choose).targets.num_bytes
    assert planned == pytest.approx(taken, rel=0.02)


@pytest.mark.skipif(sys.platform != "linux", reason="resident memory as Linux counts it")
@pytest.mark.parametrize("quantization", ["none", "int4"])
def test_the_largest_step_stays_within_the_workspace(tmp_path, quantization):
    shape = LlamaShape(**{**vars(SHAPE), "max_position_embeddings": 16384})
    directory = write_llama_checkpoint(tmp_path, shape)
    done = subprocess.run(
        [sys.executable, "-c", STEP, str(directory), quantization],
        capture_output=True,
        text=True,
        check=True,
        timeout=110,
    )
    peak = json.loads(done.stdout.splitlines()[-1])["peak"]
    config = load_checkpoint(directory).config
    names = family_of(config.architecture).names
    numerics = choose_numerics(
        CPU, dtype="float32", kv_dtype="auto", kernels="torch", quantization=quantization, stored="float32"
    )
    bound = memory_needs(
        config,
        names,
        numerics,
        format_chooser(quantization, torch.float32, names),
        num_tokens=512,
        num_rows=4,
        page_size=16,
        in_place=False,
    ).workspace(16384)
    # Not a guess that is large enough for anything: most of it is used.
    assert bound / 10 < peak <= bound


def test_less_than_a_page_is_refused_with_the_size_of_one():
    with pytest.raises(KVBudgetError, match=r"^1.00 KiB of KV memory is less than one page of 16 tokens, 64"):
        plan(needs(10 * MIB), 100 * MIB, kv_memory=MemorySize.parse("1KiB"))


def test_recorded_steps_have_room_of_their_own_and_the_refusal_says_how_much():
    wanted = needs(40 * MIB)
    with pytest.raises(KVBudgetError, match=r"- 10.00 MiB workspace = 50.00 MiB left"):
        plan(wanted, 100 * MIB, num_pages=10**6)
    wanted = replace(wanted, recorded=lambda context: 20 * MIB + context)
    with pytest.raises(
        KVBudgetError, match=r"- 30.01 MiB workspace \(20.00 MiB of it for recorded steps\) = "
    ):
        plan(wanted, 100 * MIB, num_pages=10**6)
    left = 100 * MIB - 40 * MIB - (30 * MIB + 2 * 4096)
    assert plan(wanted, 100 * MIB, GPU) == int(0.9 * left) // PAGE


def test_room_for_recorded_steps_has_all_its_parts(tmp_path):
    config = load_checkpoint(write_llama_checkpoint(tmp_path / "model")).config
    room = [
        RecordedMemory(config, 512, rows, rows, page_size).num_bytes(context)
        for rows, context, page_size in ((8, 4096, 16), (256, 4096, 16), (8, 8192, 16), (8, 4096, 1))
    ]
    logits = 4 * 248 * config.vocab_size
    assert room[1] - room[0] > 3 * logits, "two sets of logits, and counters"
    assert room[2] - room[0] == 4 * 9 * 4096 * 17 // 16, "page table and token table"
    assert room[3] - room[0] == 4 * 9 * 4096 * 15 // 16
    names = family_of(config.architecture).names
    numerics = choose_numerics(
        CPU, dtype="float32", kv_dtype="auto", kernels="torch", quantization="none", stored="float32"
    )
    sizes = {"num_tokens": 512, "num_rows": 8, "page_size": 16, "in_place": True}
    chooser = format_chooser("none", torch.float32, names)
    with_graphs = memory_needs(config, names, numerics, chooser, **sizes, recorded_slots=8)
    without = memory_needs(config, names, numerics, chooser, **sizes)
    shortest = RecordedMemory(config, 512, 8, 8, 16).num_bytes(1024)
    assert with_graphs.workspace_of(64) - without.workspace_of(64) == shortest
    assert "--graphs off records no steps" in with_graphs.remedies()
    assert "--graphs off records no steps" not in without.remedies()
