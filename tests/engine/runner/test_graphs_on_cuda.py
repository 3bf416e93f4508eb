"""What only a GPU can show of recorded steps: graphs, streams, and memory that is not asked for again."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from rhizome_engine.batch import Batch
from rhizome_engine.core.engine_core import EngineCore
from rhizome_engine.core.events import FailedEvent, TokensEvent
from rhizome_engine.runner import ModelRunner, graphs
from rhizome_engine.runner.recording import CudaRecorder, RecordingError
from rhizome_engine.runner.static_step import End
from rhizome_engine.runner.step_buffers import StepBuffers, StepShape
from rhizome_engine.sampling.params import SamplingParams
from rhizome_engine.scheduler.config import SchedulerConfig
from rhizome_engine.scheduler.request import Request
from rhizome_testing.checkpoints import LlamaShape, write_llama_checkpoint
from rhizome_testing.sampling_batch import sampling_batch

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device"),
]
ROWS = 5
WAYS = [
    SamplingParams(temperature=0.0),
    SamplingParams(temperature=0.9, seed=1),
    SamplingParams(temperature=1.1, top_p=0.8, min_p=0.02, seed=2),
    SamplingParams(temperature=0.8, top_k=20, repetition_penalty=1.2, seed=3),
    SamplingParams(temperature=0.0, top_logprobs=1),
]


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory):
    shape = LlamaShape(hidden_size=256, intermediate_size=512, num_hidden_layers=3, vocab_size=1000)
    return write_llama_checkpoint(tmp_path_factory.mktemp("graphs") / "model", shape)


class Served:
    """A core on the GPU and what came out of it."""

    def __init__(self, checkpoint, recording, dtype="float32", rows=ROWS):
        config = SchedulerConfig(
            max_batch_size=rows, max_step_tokens=256, overlap=True, max_partial_prefills=rows
        )
        self.runner = ModelRunner(
            checkpoint, device="cuda", dtype=dtype, graphs=recording, num_pages=600, page_size=16,
            max_num_tokens=256, max_num_rows=rows, num_slots=config.num_slots, overlap=True,
        )  # fmt: skip
        self.core = EngineCore(self.runner, config)
        self.tokens: dict[str, list[int]] = {}

    def add(self, name, prompt, params, max_tokens):
        self.core.add(Request(name, prompt, params, max_tokens=max_tokens, ignore_eos=True))

    def step(self):
        for event in self.core.step():
            assert not isinstance(event, FailedEvent), event.error
            if isinstance(event, TokensEvent):
                self.tokens.setdefault(event.request.request_id, []).extend(event.token_ids)

    def finish(self):
        while self.core.has_work:
            self.step()

    def record_all(self):
        while self.core.use_idle_time():
            pass

    @property
    def kinds(self):
        return set(self.runner._computer._recorded._recordings)


def talk(served, turns=3):
    """Prompts that join and leave, alone and together; graphs are recorded between the turns."""
    for turn in range(turns):
        for number in range(2 * ROWS):
            prompt = [(turn + number * 7 + place) % 900 for place in range(5 + 9 * number)]
            served.add(f"{turn} {number}", prompt, WAYS[number % len(WAYS)], max_tokens=6 + 5 * number)
            for _ in range(number % 3):
                served.step()
        served.finish()
        served.record_all()


def test_graphs_give_the_tokens_of_eager_steps_and_of_reruns(checkpoint):
    tokens = {}
    for recording in ("off", "rerun", "auto"):
        served = Served(checkpoint, recording)
        talk(served)
        tokens[recording] = served.tokens
        if recording == "auto":
            assert served.runner._computer.graphs == "CUDA graphs"
            counts = served.runner.counts
            assert counts.replayed > counts.eager and counts.recordings == len(served.kinds) >= 6
            ends = {(kind.shape.is_decode, kind.end) for kind in served.kinds}
            assert {(True, End.HIDDEN), (True, End.PENALISED)} <= ends
            assert any(not is_decode for is_decode, _ in ends)
    assert tokens["auto"] == tokens["rerun"]
    assert tokens["auto"] == tokens["off"]


def steady(checkpoint, dtype="bfloat16", rows=ROWS):
    """All rows decode, all of it recorded, and every buffer has been round once."""
    served = Served(checkpoint, "auto", dtype, rows)
    for number in range(rows):
        served.add(str(number), [number] * 20, WAYS[number % 3], max_tokens=400)
    for _ in range(60):
        served.step()
    replayed = served.runner.counts.replayed
    served.step()
    assert served.runner.counts.replayed == replayed + 1
    return served


def test_a_hundred_steps_allocate_nothing_on_the_device(checkpoint):
    served = steady(checkpoint)
    torch.cuda.synchronize()
    before = torch.cuda.memory_stats()["allocation.all.allocated"]
    eager = served.runner.counts.eager
    for _ in range(100):
        served.step()
    torch.cuda.synchronize()
    assert torch.cuda.memory_stats()["allocation.all.allocated"] == before
    assert served.runner.counts.eager == eager


@pytest.mark.filterwarnings("ignore:Synchronization debug mode is a prototype")
def test_fifty_steps_never_wait_for_the_device_but_for_their_tokens(checkpoint):
    served = steady(checkpoint)
    buffers = served.runner._computer._staging._buffers
    waits = buffers.num_waits
    torch.cuda.set_sync_debug_mode("error")
    try:
        for _ in range(50):
            served.step()
    finally:
        torch.cuda.set_sync_debug_mode("default")
    assert buffers.num_waits == waits


def test_recordings_share_memory(checkpoint):
    """Recording many sizes takes little more than recording the largest."""
    served = steady(checkpoint, rows=64)
    served.finish()
    served.record_all()
    torch.cuda.synchronize()
    before = torch.cuda.memory_reserved()
    for rows in (48, 24, 5, 2, 1):
        for number in range(rows):
            served.add(f"{rows} {number}", [number] * 20, WAYS[number % 3], max_tokens=20)
        served.finish()
    served.record_all()
    torch.cuda.synchronize()
    largest = 64 * 1000 * 4 * 4
    assert len(served.kinds) >= 6
    assert torch.cuda.memory_reserved() - before < 8 * largest + 64 * 2**20


def test_a_graph_reads_what_its_inputs_hold_by_then():
    device = torch.device("cuda", 0)
    numbers = torch.arange(8, device=device)
    recorder = CudaRecorder(device)
    recording = recorder.record(lambda: numbers * 2)
    other = recorder.record(lambda: numbers + 100)
    numbers.copy_(torch.arange(8, 16))
    recording.replay()
    other.replay()
    assert recording.output.tolist() == list(range(16, 32, 2))
    assert other.output.tolist() == list(range(108, 116))


@pytest.mark.filterwarnings("ignore:The CUDA Graph is empty")
def test_what_asks_the_device_cannot_be_recorded_and_harms_nothing(checkpoint, monkeypatch, caplog):
    device = torch.device("cuda", 0)
    numbers = torch.arange(8, device=device)
    recorder = CudaRecorder(device)
    with pytest.raises(RecordingError):
        recorder.record(lambda: numbers[: int(numbers.sum())])
    assert (numbers + 1).tolist() == list(range(1, 9))
    recording = recorder.record(lambda: numbers + 1)
    recording.replay()
    assert recording.output.tolist() == list(range(1, 9))

    monkeypatch.setattr(graphs, "_PATIENCE", 2)
    served = Served(checkpoint, "auto")
    step = served.runner._computer._recorded._step
    compute = step.compute

    def compute_and_wait(*arguments, **settings):
        output = compute(*arguments, **settings)
        output.sum().item()
        return output

    monkeypatch.setattr(step, "compute", compute_and_wait)
    eager = Served(checkpoint, "off")
    for each in (served, eager):
        for number in range(3):
            each.add(str(number), [number] * 9, WAYS[number], max_tokens=20)
        each.finish()
    assert served.tokens == eager.tokens and served.runner.counts.replayed == 0
    assert "could not be recorded" in caplog.text


def test_a_pinned_buffer_waits_for_its_copy_when_the_host_runs_far_ahead(checkpoint):
    """However fast the host is, arrays of a step that is still to be copied are not overwritten."""
    device, shape = torch.device("cuda", 0), StepShape(4096)
    buffers = StepBuffers([shape], 1, device)
    kept = []
    torch.cuda._sleep(100_000_000)
    for number in range(9):
        ids = np.full(4096, number, np.int64)
        batch = Batch(
            ids, ids, ids, np.array([0, 4096], np.int32), np.array([4096], np.int32),
            np.zeros((1, 1), np.int32), np.zeros(1, np.int64), sampling_batch([], [], 10, rows=[]),
        )  # fmt: skip
        kept.append(buffers.send(shape, batch).token_ids.clone())
    assert [sorted(set(ids.tolist())) for ids in kept] == [[number] for number in range(9)]
    assert buffers.num_waits > 0
