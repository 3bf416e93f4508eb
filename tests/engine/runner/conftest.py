"""A back end for recorded steps that needs nothing but PyTorch, and cores that compute with it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import pytest
import torch

from rhizome_engine.attention.base import AttentionInputs, AttentionLayer, StaticInputs
from rhizome_engine.attention.paged_kv import PagedKV
from rhizome_engine.attention.reference import attend, store
from rhizome_engine.core.engine_core import EngineCore
from rhizome_engine.core.events import FailedEvent, FinishedEvent, TokensEvent
from rhizome_engine.runner import ModelRunner, graphs, model_runner
from rhizome_engine.sampling import static_choice, token_table
from rhizome_engine.scheduler.config import SchedulerConfig
from rhizome_engine.scheduler.request import Request
from rhizome_testing.checkpoints import write_llama_checkpoint


class ReferencePlan:
    """The reference of the attention kernels over the arrays of a step."""

    def __init__(self, kv: PagedKV, ropes: list[Any], inputs: StaticInputs) -> None:
        self._kv = kv
        self._inputs = inputs
        self._tables = [rope.table(inputs.positions) for rope in ropes]

    def attend(self, layer: AttentionLayer, qkv: torch.Tensor) -> torch.Tensor:
        inputs, (keys, values) = self._inputs, self._kv.layer(layer.index)
        q = qkv.new_empty(len(qkv), layer.num_heads, layer.head_dim)
        table = None if layer.rope is None else self._tables[layer.rope]
        store(layer, qkv, table, inputs.slot_mapping, keys, values, q)
        indices = (inputs.query_start, inputs.context_len, inputs.row_slots, inputs.page_table)
        return attend(layer, q, keys, values, *indices).flatten(1).to(qkv.dtype)


class ReferenceBackend:
    """Plans of both kinds; those of static arrays read them when they are used."""

    name = "reference"

    def __init__(self, kv: PagedKV, ropes: list[Any]) -> None:
        self.kv = kv
        self.ropes = list(ropes)

    def plan(self, inputs: AttentionInputs) -> ReferencePlan:
        arrays = map(torch.from_numpy, (inputs.query_start, inputs.context_len, inputs.page_table))
        query_start, context_len, page_table = arrays
        rows = torch.arange(len(context_len), dtype=torch.int32)
        return self.static_plan(
            StaticInputs(
                positions=inputs.positions,
                slot_mapping=inputs.slot_mapping,
                query_start=query_start,
                context_len=context_len,
                row_slots=rows,
                page_table=page_table,
                is_decode=False,
            )
        )

    def static_plan(self, inputs: StaticInputs) -> ReferencePlan:
        return ReferencePlan(self.kv, self.ropes, inputs)


@dataclass
class Played:
    """A core after it has served requests.

    Attributes:
        runner: computed them.
        tokens: by request.
        logprobs: by request, where they were asked for.
    """

    runner: ModelRunner
    core: EngineCore
    tokens: dict[str, list[int]] = field(default_factory=dict)
    logprobs: dict[str, list[Any]] = field(default_factory=dict)

    def step(self) -> None:
        for event in self.core.step():
            name = event.request.request_id
            match event:
                case TokensEvent():
                    self.tokens.setdefault(name, []).extend(event.token_ids)
                    self.logprobs.setdefault(name, []).extend(event.logprobs or [])
                case FailedEvent():
                    raise event.error
                case FinishedEvent():
                    assert name in self.tokens or not event.request.max_output
        self.core.check_conservation()

    def add(self, name: str, prompt: list[int], params: Any, **settings: Any) -> None:
        settings = {"max_tokens": 12, "ignore_eos": True, **settings}
        self.core.add(Request(name, prompt, params, **settings))

    def finish(self) -> Played:
        while self.core.has_work:
            self.step()
        return self


@pytest.fixture(scope="session")
def small_checkpoint(tmp_path_factory):
    return write_llama_checkpoint(tmp_path_factory.mktemp("steps") / "model")


@pytest.fixture
def make_played(small_checkpoint, monkeypatch) -> Callable[..., Played]:
    """A core over the reference back end, in plain PyTorch; it records at the second use."""
    torch.set_num_threads(1)
    monkeypatch.setattr(model_runner, "make_attention", lambda _, kv, ropes: ReferenceBackend(kv, ropes))
    for module in (static_choice, token_table):
        monkeypatch.setattr(module, "why_not", lambda _: "the test wants PyTorch")
    monkeypatch.setattr(graphs, "_PATIENCE", 2)

    def make(
        recording: str,
        *,
        num_pages: int = 200,
        page_size: int = 4,
        kv_host_memory: str | None = None,
        **config: Any,
    ) -> Played:
        config = SchedulerConfig(**config)
        runner = ModelRunner(
            small_checkpoint,
            device="cpu",
            dtype="float32",
            kernels="torch",
            attention="sdpa",
            graphs=recording,
            num_threads=1,
            page_size=page_size,
            num_pages=num_pages,
            kv_host_memory=kv_host_memory,
            max_num_tokens=config.max_step_tokens,
            max_num_rows=config.max_batch_size,
            num_slots=config.num_slots,
            overlap=config.overlap,
        )
        return Played(runner, EngineCore(runner, config, num_host_pages=runner.num_host_pages))

    return make
