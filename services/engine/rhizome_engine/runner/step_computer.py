"""Computes steps: replayed where they were recorded, else the same functions one by one.

A batch's pages are copied and its histories loaded first; then its arrays go to the device in one copy, and
either a recording runs over them, which leaves the chosen tokens in pinned memory, or the model does, and
sampling follows when the core asks for it. Both leave new tokens in the token table, where the next step
finds them, so that it can be launched before anybody has read them.
"""

from __future__ import annotations

import logging

import numpy as np
import torch
from torch import Tensor

from rhizome_engine.attention.base import AttentionBackend, AttentionInputs
from rhizome_engine.attention.paged_kv import PagedKV
from rhizome_engine.batch import Batch, PageCopy, TokenLogprobs, TokenMasks
from rhizome_engine.checkpoint.model_config import ModelConfig
from rhizome_engine.core.runner_protocol import StepCounts
from rhizome_engine.models.decoder import Decoder
from rhizome_engine.parallel.sampling import sample_together
from rhizome_engine.runner.agreed_recorder import AgreedRecorder
from rhizome_engine.runner.graphs import RecordedSteps, step_shapes
from rhizome_engine.runner.host_pages import HostPages
from rhizome_engine.runner.page_tables import PageTables
from rhizome_engine.runner.pooling import PooledSums
from rhizome_engine.runner.recording import CudaRecorder, Recorder, RerunRecorder
from rhizome_engine.runner.result_buffers import ResultBuffers
from rhizome_engine.runner.staging import TokenStaging
from rhizome_engine.runner.static_step import StaticStep
from rhizome_engine.runner.step_buffers import StepBuffers, StepShape
from rhizome_engine.runner.steps import DeviceStep, ReplayedStep
from rhizome_engine.sampling.prompt_logprobs import score_prompt
from rhizome_engine.sampling.sampler import Sampled, sample
from rhizome_engine.sampling.staging import to_device
from rhizome_engine.sampling.static_choice import choose_tokens
from rhizome_engine.sampling.token_table import TokenTable

logger = logging.getLogger(__name__)

GRAPHS = ("auto", "off", "rerun")


class StepComputer:
    """Owns what lives on the device beside weights and KV pool.

    Args:
        model: computes.
        attention: reads and writes the pool.
        kv: the pool.
        max_num_tokens: tokens of the largest step.
        max_num_rows: rows of the largest step.
        num_slots: requests that hold pages at once.
        max_context: longest context in tokens.
        host: pages beside the pool's, None for none.
        graphs: see `why_not_recorded`.

    Attributes:
        counts: how steps were computed so far.
        graphs: what records steps, or why nothing does, for the log.
    """

    def __init__(
        self,
        model: Decoder,
        attention: AttentionBackend,
        kv: PagedKV,
        *,
        max_num_tokens: int,
        max_num_rows: int,
        num_slots: int,
        max_context: int,
        graphs: str,
        host: HostPages | None = None,
    ) -> None:
        self.counts = StepCounts()
        self.device = device = kv.data.device
        self._model = model
        self._attention = attention
        self._kv = kv
        self._host = host
        self._pooled = PooledSums()
        self._tokens = TokenTable(num_slots, max_context, device)
        self._results = ResultBuffers(max_num_rows, device)
        shapes = step_shapes(max_num_rows, max_num_tokens)
        buffers = None
        if device.type != "cpu" or graphs == "rerun":
            buffers = StepBuffers([*shapes, StepShape(max_num_tokens)], num_slots, device)
        self._staging = TokenStaging(self._tokens, max_num_tokens, buffers)
        self._recorded: RecordedSteps | None = None
        why_not = why_not_recorded(graphs, device, model.config)
        self.graphs = why_not or "off"
        if buffers is not None and why_not is None:
            recorder: Recorder = CudaRecorder(device) if graphs == "auto" else RerunRecorder()
            if model.group is not None:
                recorder = AgreedRecorder(recorder, model.group)
            self.graphs = recorder.name
            pages = PageTables(num_slots, -(-max_context // kv.page_size), kv.page_size, device)
            step = StaticStep(model, attention, self._tokens, pages, choose_tokens)
            if step.can_record(buffers.arrays(shapes[0])):
                self._recorded = RecordedSteps(step, buffers, pages, recorder, shapes, self.counts)
            else:
                self.graphs = f"none: {attention.name} attention cannot be recorded"

    @torch.inference_mode()
    def begin(self, batch: Batch) -> DeviceStep | ReplayedStep:
        """Compute a step as far as its hidden states, or to its tokens; on a GPU, without waiting."""
        self._prepare(batch)
        replayed = None if self._recorded is None else self._recorded.run(batch)
        if replayed is None:
            self.counts.eager += 1
            return DeviceStep(self, batch, self._run_model(batch))
        if replayed.chosen:
            return ReplayedStep(self._results.fetch(replayed.output, len(batch.sampling)))
        return DeviceStep(self, batch, replayed.output[: batch.num_tokens])

    def use_idle_time(self) -> bool:
        """Record one kind of step that is wanted, if any; whether more are. Nothing may be under way."""
        if self._recorded is None:
            return False
        self._set_device()
        return self._recorded.record_next()

    @torch.inference_mode()
    def hidden_states(self, batch: Batch) -> Tensor:
        """Write a step's keys and values and return [num_tokens, hidden_size]; never replayed."""
        self._prepare(batch)
        return self._run_model(batch)

    @torch.inference_mode()
    def sample(self, hidden: Tensor, batch: Batch, masks: TokenMasks | None) -> Sampled:
        """Choose a token for every row that needs one; without waiting for it, on a GPU."""
        rows = batch.sampling.rows
        if len(rows) != batch.num_tokens:  # in a step of decodes only, every token is its row's last
            last = batch.query_start[rows + 1].astype(np.int64) - 1
            hidden = hidden.index_select(0, to_device({"last": last}, self.device)["last"])
        model = self._model
        if model.group is not None and model.vocabulary is not None:
            own = model.own_logits(hidden)
            return sample_together(
                own, batch.sampling, self._tokens, masks, share=model.vocabulary, group=model.group
            )
        return sample(model.logits(hidden), batch.sampling, self._tokens, masks)

    @torch.inference_mode()
    def score_prompts(self, hidden: Tensor, batch: Batch) -> list[list[TokenLogprobs]]:
        """Log probabilities of prompt tokens, one list per `Batch.prompt_scores`."""
        starts = batch.query_start
        return [
            score_prompt(hidden[starts[row] : starts[row] + len(targets)], self._model.logits, targets, top)
            for row, targets, top in batch.prompt_scores
        ]

    @torch.inference_mode()
    def pool(self, hidden: Tensor, batch: Batch) -> Tensor | None:
        """Take a step's hidden states into the vectors that are wanted; those that are complete.

        Must be called for every step that has `Batch.pooled`, in their order.

        Returns:
            [n, hidden_size] float32 on the device, one per row of `Batch.pooled` that ends; None without any.
        """
        return self._pooled.pool(hidden, batch, self._model.final_norm)

    def _prepare(self, batch: Batch) -> None:
        self._set_device()
        for copy in batch.page_copies:
            self._copy_pages(copy)
        for slot, token_ids in batch.histories:
            self._tokens.load(slot, token_ids)

    def _copy_pages(self, copy: PageCopy) -> None:
        """Within the pool, or between it and the host tier."""
        if max(copy.sources[0], copy.targets[0]) < self._kv.num_pages:
            for source, target in zip(copy.sources.tolist(), copy.targets.tolist(), strict=True):
                self._kv.copy_page(source, target, copy.num_slots)
        else:
            assert self._host is not None, "a page beyond the pool, and there is no host tier"
            self._host.copy(copy)

    def _run_model(self, batch: Batch) -> Tensor:
        staged = self._staging.stage(batch)
        plan = self._attention.plan(
            AttentionInputs(
                staged.positions, staged.slot_mapping, batch.query_start, batch.context_len, batch.page_table
            )
        )
        return self._model.hidden_states(staged.token_ids, plan)

    def _set_device(self) -> None:
        """Kernels that are not PyTorch's run on the thread's device, and any thread may compute."""
        if self.device.type == "cuda":
            torch.cuda.set_device(self.device)


def why_not_recorded(graphs: str, device: torch.device, config: ModelConfig) -> str | None:
    """Say why no steps are recorded, for the log; None where they are, if attention can be.

    Args:
        graphs: "auto" records steps on a GPU; "off" never; "rerun" goes all the ways of recorded steps on any
            device, but calls functions again, for tests and to find what is wrong with a recording.
        device: where steps are computed.
        config: of the model.

    Raises:
        ValueError: `graphs` is unknown.
    """
    if graphs not in GRAPHS:
        raise ValueError(f"graphs must be {', '.join(GRAPHS)}, not {graphs!r}")
    if graphs == "off":
        return "off"
    if config.experts is not None:
        return "none: experts are chosen by the host"
    if graphs == "auto" and device.type != "cuda":
        return "none: for CUDA devices only"
    return None
