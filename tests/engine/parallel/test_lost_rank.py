"""What becomes of a model of several ranks, and of who asks it, when one of its processes ends."""

from __future__ import annotations

import asyncio
import time
from pathlib import Path

import grpc
import psutil
import pytest
import torch

from rhizome.engine.v1.generate_pb2 import FINISH_REASON_LENGTH
from rhizome_engine.llm.llm import LLM
from rhizome_engine.parallel.errors import RankLostError, RankRefusedError
from rhizome_engine.sampling.params import SamplingParams
from rhizome_testing.checkpoints import (
    LlamaShape,
    random_llama_weights,
    write_llama_checkpoint,
    write_weights,
)
from rhizome_testing.engine_process import EngineProcess
from rhizome_testing.hash_core import token_request
from rhizome_transport.errors import EngineError
from rhizome_transport.grpc_client import GrpcEngineClient


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_llama_checkpoint(tmp_path_factory.mktemp("models") / "tiny")


def ranks_below(process: psutil.Process) -> list[psutil.Process]:
    return [one for one in process.children(recursive=True) if "rhizome_engine.parallel" in one.cmdline()]


def test_a_library_model_is_lost_with_one_of_its_processes(checkpoint: Path) -> None:
    settings = {"device": "cpu", "dtype": "float32", "num_pages": 64, "num_threads": 1}
    greedy = SamplingParams(temperature=0.0)
    expected = LLM(checkpoint, **settings).generate("Hello", greedy, max_tokens=8)[0].token_ids
    llm = LLM(checkpoint, tensor_parallel=2, **settings)
    assert llm.generate("Hello", greedy, max_tokens=8)[0].token_ids == expected
    (other,) = ranks_below(psutil.Process())
    other.kill()
    started = time.monotonic()
    with pytest.raises(RankLostError, match="rank 1 was killed by signal 9"):
        llm.generate("Hello again", greedy, max_tokens=8)
    assert time.monotonic() - started < 5
    llm.close()
    assert not ranks_below(psutil.Process())


def names_in(folder: Path) -> set[str]:
    return {path.name for path in folder.iterdir()}


def test_what_only_one_rank_cannot_load_is_told_by_rank_0(tmp_path: Path) -> None:
    path, weights = write_llama_checkpoint(tmp_path / "nan"), random_llama_weights(LlamaShape())
    weights["model.layers.1.self_attn.q_proj.weight"][-1, 3] = torch.nan  # a row of rank 1's
    write_weights(path, weights)
    with pytest.raises(RankRefusedError, match=r"rank 1 on cpu failed: .*q_proj.weight holds NaN"):
        LLM(path, tensor_parallel=2, device="cpu", num_pages=8, num_threads=1, quantization="int8")
    assert not ranks_below(psutil.Process())


async def end_of(
    client: GrpcEngineClient, begun: asyncio.Event, count: int
) -> tuple[grpc.StatusCode, str] | int:
    """How a request ended: its error, or its finish reason."""
    reason = 0
    try:
        async for event in client.generate(token_request([1, 2, 3], count), timeout_s=60):
            begun.set()
            reason = event.finished.reason
    except EngineError as error:
        return error.code, error.reason
    return reason


async def test_an_engine_begins_anew_when_a_rank_is_killed(checkpoint: Path, tmp_path: Path) -> None:
    environment = {"XDG_RUNTIME_DIR": str(tmp_path), "TMPDIR": str(tmp_path), "OMP_NUM_THREADS": "1"}
    shared_memory = names_in(Path("/dev/shm"))
    arguments = ("--tensor-parallel", "2", "--dtype", "float32")
    with EngineProcess(checkpoint, tmp_path, *arguments, environment=environment) as engine:
        await asyncio.to_thread(engine.wait_serving)
        first = engine.core()
        (rank,) = ranks_below(first)
        client = GrpcEngineClient(engine.target, peer_name="test")
        assert (await client.model_info()).device == "cpu, cpu"
        begun = [asyncio.Event() for _ in range(4)]
        ends = [asyncio.ensure_future(end_of(client, one, 1900)) for one in begun]
        await asyncio.gather(*(one.wait() for one in begun))
        rank.kill()
        killed = time.monotonic()
        assert {await end for end in ends} == {(grpc.StatusCode.ABORTED, "ENGINE_LOST")}
        assert time.monotonic() - killed < 5
        await asyncio.to_thread(
            engine.wait_until, lambda: "core rank_lost (status 4)" in engine.output, "the front saw why"
        )
        assert "rank 1 was killed by signal 9" in engine.output
        await asyncio.to_thread(engine.wait_serving)
        second = engine.core()
        assert second.pid != first.pid and not first.is_running()
        assert await end_of(client, asyncio.Event(), 3) == FINISH_REASON_LENGTH

        # Whatever ends rank 0 ends the others, and what it leaves is nothing.
        (rank,) = ranks_below(second)
        second.kill()
        assert psutil.wait_procs([rank], timeout=5)[0]
        await client.close()
    assert [name for name in names_in(tmp_path) if not name.endswith(".log")] == []
    assert names_in(Path("/dev/shm")) <= shared_memory


async def test_an_engine_begins_anew_when_a_rank_stands_still(checkpoint: Path, tmp_path: Path) -> None:
    environment = {"XDG_RUNTIME_DIR": str(tmp_path), "TMPDIR": str(tmp_path), "OMP_NUM_THREADS": "1"}
    arguments = ("--tensor-parallel", "2", "--dtype", "float32", "--tensor-parallel-timeout-s", "3")
    with EngineProcess(checkpoint, tmp_path, *arguments, environment=environment) as engine:
        await asyncio.to_thread(engine.wait_serving)
        first = engine.core()
        (rank,) = ranks_below(first)
        client = GrpcEngineClient(engine.target, peer_name="test")
        # The first steps have more time.
        assert await end_of(client, asyncio.Event(), 40) == FINISH_REASON_LENGTH
        begun = [asyncio.Event() for _ in range(2)]
        ends = [asyncio.ensure_future(end_of(client, one, 1900)) for one in begun]
        await asyncio.gather(*(one.wait() for one in begun))
        rank.suspend()
        stopped = time.monotonic()
        assert {await end for end in ends} == {(grpc.StatusCode.ABORTED, "ENGINE_LOST")}
        assert time.monotonic() - stopped < 15  # with the time of the first steps it would be 30
        await asyncio.to_thread(
            engine.wait_until, lambda: "core rank_lost (status 4)" in engine.output, "the front saw why"
        )
        assert "one is stuck" in engine.output
        assert not psutil.wait_procs([first, rank], timeout=5)[1]  # also one that is stopped
        await asyncio.to_thread(engine.wait_serving)
        assert await end_of(client, asyncio.Event(), 3) == FINISH_REASON_LENGTH
        await client.close()


def test_a_wrong_number_of_ranks_starts_nothing(checkpoint: Path) -> None:
    with pytest.raises(ValueError, match=r"--tensor-parallel 3: 4 query heads .* shared out among 2, 4$"):
        LLM(checkpoint, tensor_parallel=3)
    assert not ranks_below(psutil.Process())
