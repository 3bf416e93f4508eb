"""What a recording computes: a whole step between static arrays.

    changes of the page table ─▶ table      late tokens ─▶ token ids ─▶ layers ─▶ hidden states
                                                                                    │ of sampled rows
                                             token table ◀─ choose ◀─ logits ◀──────┘

Everything is read from `StepArrays` and from tables that live as long as the runner; nothing depends on what
the arrays hold except results, so the same kernels run each time.
"""

from __future__ import annotations

from enum import Enum
from typing import Protocol

from torch import Tensor

from rhizome_engine.attention.base import AttentionBackend, StaticInputs
from rhizome_engine.models.decoder import Decoder
from rhizome_engine.parallel.recorded_choice import RecordedChoice
from rhizome_engine.runner.page_tables import PageTables
from rhizome_engine.runner.step_buffers import StepArrays
from rhizome_engine.sampling.static_choice import DeviceSampling
from rhizome_engine.sampling.token_table import TokenTable


class End(Enum):
    """How far a recorded step goes."""

    HIDDEN = "to its hidden states"
    TOKENS = "to its tokens"
    PENALISED = "to its tokens, some with penalties"
    OF_RANKS = "to its tokens, each rank choosing among its own"


class Choose(Protocol):
    """See `sampling.static_choice.choose_tokens`."""

    def __call__(
        self, logits: Tensor, settings: DeviceSampling, table: TokenTable, *, penalties: bool
    ) -> Tensor:
        """Return [n] int64."""
        ...


class StaticStep:
    """A step over static arrays.

    Args:
        model: computes.
        attention: has static plans.
        tokens: what the host has not read.
        pages: the device's page table.
        choose: chooses tokens without waiting for the device.
    """

    def __init__(
        self,
        model: Decoder,
        attention: AttentionBackend,
        tokens: TokenTable,
        pages: PageTables,
        choose: Choose,
    ) -> None:
        self._model = model
        self._attention = attention
        self._tokens = tokens
        self._pages = pages
        self._choose = choose
        self._of_ranks = None if model.group is None else RecordedChoice(model, tokens, choose)

    def compute(self, arrays: StepArrays, end: End, *, is_decode: bool) -> Tensor:
        """Compute a step.

        Returns:
            [num_tokens, hidden_size], or the tokens [num_rows] int64 in the order of `arrays.sampling`
        """
        hidden = self._hidden_states(arrays, is_decode=is_decode)
        if end is End.HIDDEN:
            return hidden
        if not is_decode:  # else every token is its row's last
            hidden = hidden.index_select(0, arrays.sampled_tokens)
        if self._of_ranks is not None:
            penalties, apart = end is End.PENALISED, end is End.OF_RANKS
            return self._of_ranks.choose(hidden, arrays.sampling, penalties=penalties, apart=apart)
        logits = self._model.logits(hidden)
        return self._choose(logits, arrays.sampling, self._tokens, penalties=end is End.PENALISED)

    def _hidden_states(self, arrays: StepArrays, *, is_decode: bool) -> Tensor:
        """Write keys and values and return [num_tokens, hidden_size]."""
        self._pages.apply(arrays.change_places, arrays.change_pages)
        self._tokens.fill_late_static(arrays.token_ids, arrays.positions, arrays.late_slots)
        plan = self._attention.static_plan(self._inputs(arrays, is_decode=is_decode))
        assert plan is not None, "can_record was asked before"
        return self._model.hidden_states(arrays.token_ids, plan)

    @property
    def has_ranks(self) -> bool:
        """Whether the model is shared out."""
        return self._of_ranks is not None

    def can_record(self, arrays: StepArrays) -> bool:
        """Whether attention has plans for static arrays."""
        return self._attention.static_plan(self._inputs(arrays, is_decode=True)) is not None

    def _inputs(self, arrays: StepArrays, *, is_decode: bool) -> StaticInputs:
        return StaticInputs(
            positions=arrays.positions,
            slot_mapping=arrays.slot_mapping,
            query_start=arrays.query_start,
            context_len=arrays.context_len,
            row_slots=arrays.row_slots,
            page_table=self._pages.table,
            is_decode=is_decode,
        )
