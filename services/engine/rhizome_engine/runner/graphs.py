"""Steps that were recorded, and when new ones are.

A step is one of few *kinds*: how many rows or tokens it is padded to, whether it decodes or prefills, and how
far it goes. Its arrays go to the device, where the recording of its kind reads them and the tokens stay in
the token table for the next step; only a copy of them comes back, a step later.

    | step | recorded |
    |---|---|
    | every row decodes, ordinary sampling | all of it |
    | every row decodes; log probabilities, biases, allowed tokens, bad words, grammars | its hidden states |
    | up to 64 rows with up to 512 tokens together, some or all of prompts | as above |
    | more, prompt log probabilities, vectors | nothing |

A kind that has no recording yet is computed without and noted as wanted. It is recorded when the engine has
nothing to do, the largest first, one at a time; or, where that moment does not come, at its `_PATIENCE`-th
use: recording costs about three such steps, and what replaying would have saved is more than that by then.
"""

from __future__ import annotations

import logging
import time
from typing import NamedTuple

import torch
from torch import Tensor

from rhizome_engine.batch import Batch
from rhizome_engine.core.runner_protocol import StepCounts
from rhizome_engine.parallel.sampling import needs_whole_logits
from rhizome_engine.runner.buckets import decode_buckets, prefill_buckets, prefill_rows, smallest_bucket
from rhizome_engine.runner.page_tables import PageTables
from rhizome_engine.runner.recording import Recorder, Recording, RecordingError
from rhizome_engine.runner.static_step import End, StaticStep
from rhizome_engine.runner.step_buffers import StepBuffers, StepShape
from rhizome_engine.sampling.staging import to_device

logger = logging.getLogger(__name__)

_PATIENCE = 16
_MORE_CHANGES = 256
"""Places for changes of the page table beside one per row; more, as of long cached prefixes, go apart."""


class StepKind(NamedTuple):
    """What a recording is for.

    Attributes:
        shape: of its arrays.
        end: how far it goes.
    """

    shape: StepShape
    end: End

    @property
    def way(self) -> tuple[bool, End]:
        """What kinds of all sizes have in common: if one cannot be recorded, none can."""
        return self.shape.is_decode, self.end

    @property
    def name(self) -> str:
        """For logs."""
        rows = f"{self.shape.num_rows} rows"
        if self.shape.is_decode:
            return f"decode of {rows} {self.end.value}"
        return f"prefill of {self.shape.num_tokens} tokens in {rows} {self.end.value}"


class Replayed(NamedTuple):
    """A step that was replayed.

    Attributes:
        output: tokens [num_rows] where they were chosen within, else hidden states [num_tokens, hidden_size];
            until the next step.
        chosen: whether tokens were chosen.
    """

    output: Tensor
    chosen: bool


def step_shapes(max_rows: int, max_tokens: int) -> list[StepShape]:
    """All shapes that are recorded, ascending: of decode steps, then of prefills."""
    decodes = [StepShape(rows, rows, rows + _MORE_CHANGES, True) for rows in decode_buckets(max_rows)]
    prefills = [
        StepShape(tokens, rows, rows + _MORE_CHANGES)
        for tokens in prefill_buckets(max_tokens)
        for rows in prefill_rows(tokens, max_rows)
    ]
    return decodes + prefills


class RecordedSteps:
    """See the head of this module.

    Args:
        step: what is recorded.
        buffers: bring arrays to the device.
        pages: the device's page table.
        recorder: makes recordings.
        shapes: as of `step_shapes`.
        counts: what happened, for metrics; changed.
    """

    def __init__(
        self,
        step: StaticStep,
        buffers: StepBuffers,
        pages: PageTables,
        recorder: Recorder,
        shapes: list[StepShape],
        counts: StepCounts,
    ) -> None:
        self._step = step
        self._buffers = buffers
        self._pages = pages
        self._recorder = recorder
        self._counts = counts
        self._decodes = {shape.num_rows: shape for shape in shapes if shape.is_decode}
        self._prefills = [shape for shape in shapes if not shape.is_decode]
        self._row_buckets = list(self._decodes)
        self._recordings: dict[StepKind, Recording] = {}
        self._wanted: dict[StepKind, int] = {}
        self._given_up: set[tuple[bool, End]] = set()

    def run(self, batch: Batch) -> Replayed | None:
        """Replay a step; None where it has no recording."""
        kind = self._kind_of(batch)
        recording = None if kind is None else self._recordings.get(kind) or self._want(kind)
        if kind is None or recording is None:
            return None
        try:
            changes = self._pages.changes(batch)
            if len(changes.places) > kind.shape.num_changes:
                changes, others = changes.split(kind.shape.num_changes)
                moved = to_device({"places": others.places, "pages": others.pages}, self._pages.table.device)
                self._pages.apply(moved["places"], moved["pages"])
            self._buffers.send(kind.shape, batch, changes)
            recording.replay()
        except BaseException:
            self._pages.forget()
            raise
        self._counts.replayed += 1
        return Replayed(recording.output, kind.end is not End.HIDDEN)

    @torch.inference_mode()
    def record_next(self) -> bool:
        """Record the largest kind that is wanted, if any; whether more are.

        Nothing may be under way whose tokens were not chosen yet: its arrays would be lost.
        """
        if self._wanted:
            self._record(max(self._wanted, key=lambda kind: kind.shape.num_tokens))
        return bool(self._wanted)

    def _want(self, kind: StepKind) -> Recording | None:
        """Note that a kind would be used; its recording where it has waited long enough."""
        if kind.way in self._given_up:
            return None
        self._wanted[kind] = self._wanted.get(kind, 0) + 1
        return self._record(kind) if self._wanted[kind] >= _PATIENCE else None

    def _record(self, kind: StepKind) -> Recording | None:
        """Record over padding, which stores nothing; None where it failed, which is not tried again."""
        started = time.perf_counter()
        del self._wanted[kind]
        arrays = self._buffers.send(kind.shape, None, self._pages.nothing)
        try:
            recording = self._recorder.record(
                lambda: self._step.compute(arrays, kind.end, is_decode=kind.shape.is_decode)
            )
        except RecordingError as error:
            self._given_up.add(kind.way)
            self._wanted = {each: uses for each, uses in self._wanted.items() if each.way != kind.way}
            logger.exception("a %s could not be recorded; such steps go on without: %s", kind.name, error)
            return None
        took = time.perf_counter() - started
        self._counts.recordings += 1
        self._counts.recording_s += took
        level = logging.DEBUG if recording.output.is_meta else logging.INFO  # nothing, for its kernels
        logger.log(level, "recorded a %s, in %.0f ms (%s)", kind.name, took * 1e3, self._recorder.name)
        self._recordings[kind] = recording
        return recording

    def _kind_of(self, batch: Batch) -> StepKind | None:
        """The kind of a step; None for one that is never recorded."""
        if batch.prompt_scores or batch.pooled:
            return None
        if batch.num_tokens == batch.num_rows:
            rows = smallest_bucket(self._row_buckets, batch.num_rows)
            if rows is None:
                return None
            all_choose = len(batch.sampling) == batch.num_rows
            return StepKind(self._decodes[rows], self._end_of(batch) if all_choose else End.HIDDEN)
        for shape in self._prefills:
            if batch.num_tokens <= shape.num_tokens and batch.num_rows <= shape.num_rows:
                return StepKind(shape, self._end_of(batch) if len(batch.sampling) else End.HIDDEN)
        return None

    def _end_of(self, batch: Batch) -> End:
        """As `_end_of`; ranks need not see each other's logits where no row has a filter."""
        end = _end_of(batch)
        if end is End.TOKENS and self._step.has_ranks and not needs_whole_logits(batch.sampling, None).any():
            return End.OF_RANKS
        return end


def _end_of(batch: Batch) -> End:
    """How far a step can go whose rows want tokens: to those where `DeviceSampling` says all of them."""
    sampling = batch.sampling
    if batch.constrained or sampling.biases or sampling.allowed or sampling.bad_words:
        return End.HIDDEN
    if (sampling.top_logprobs >= 0).any():
        return End.HIDDEN
    penalised = sampling.frequency_penalty.any() or sampling.presence_penalty.any()
    penalised = penalised or (sampling.repetition_penalty != 1).any()
    return End.PENALISED if penalised else End.TOKENS
