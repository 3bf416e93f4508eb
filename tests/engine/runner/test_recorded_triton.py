"""Recorded steps over the kernels that a GPU runs, interpreted: attention, late tokens, sampling."""

from __future__ import annotations

import pytest
import torch

from rhizome_engine.core.engine_core import EngineCore
from rhizome_engine.core.events import FailedEvent, TokensEvent
from rhizome_engine.kernels.triton.runtime import why_not
from rhizome_engine.runner import ModelRunner, graphs
from rhizome_engine.sampling.params import SamplingParams
from rhizome_engine.scheduler.config import SchedulerConfig
from rhizome_engine.scheduler.request import Request
from rhizome_testing.checkpoints import LlamaShape, write_llama_checkpoint

CPU = torch.device("cpu")
REQUESTS = [
    ([*range(20, 29)], SamplingParams(temperature=0.0), 3),
    ([*range(20, 26), 3, 4], SamplingParams(temperature=0.9, top_p=0.9, repetition_penalty=1.2, seed=1), 4),
]


def serve(checkpoint, **settings):
    config = SchedulerConfig(max_batch_size=2, max_step_tokens=20, overlap=False)
    runner = ModelRunner(
        checkpoint, device="cpu", dtype="float32", num_pages=20, page_size=4, num_threads=1, max_num_rows=2,
        max_num_tokens=20, **settings,
    )  # fmt: skip
    core = EngineCore(runner, config)
    tokens = {}
    for number, (prompt, params, count) in enumerate(REQUESTS):
        core.add(Request(str(number), prompt, params, max_tokens=count, ignore_eos=True))
    while core.has_work:
        for event in core.step():
            assert not isinstance(event, FailedEvent), event
            if isinstance(event, TokensEvent):
                tokens.setdefault(event.request.request_id, []).extend(event.token_ids)
    return tokens, runner.counts


@pytest.mark.skipif(why_not(CPU) is not None, reason=f"no Triton here: {why_not(CPU)}")
def test_recorded_steps_over_triton_give_the_tokens_of_the_reference(tmp_path, monkeypatch):
    monkeypatch.setattr(graphs, "_PATIENCE", 1)
    checkpoint = write_llama_checkpoint(tmp_path / "model", LlamaShape(num_hidden_layers=1))
    expected, _ = serve(checkpoint, attention="sdpa", kernels="torch", graphs="off")
    tokens, counts = serve(checkpoint, attention="triton", kernels="torch", graphs="rerun")
    assert tokens == expected
    # A prompt, the other one beside a row that decodes, two rows, one row.
    assert (counts.eager, counts.replayed, counts.recordings) == (0, 5, 4)
