"""Choosing tokens on all ranks within a recorded step: nothing that is launched follows from the settings."""

from __future__ import annotations

from typing import Protocol

from torch import Tensor

from rhizome_engine.batch import NO_TOKEN
from rhizome_engine.models.decoder import Decoder
from rhizome_engine.parallel.sampling import choose_together
from rhizome_engine.sampling.device_sampling import DeviceSampling
from rhizome_engine.sampling.token_table import TokenTable


class Choose(Protocol):
    """See `sampling.static_choice.choose_tokens`."""

    def __call__(
        self, logits: Tensor, settings: DeviceSampling, table: TokenTable, *, penalties: bool
    ) -> Tensor:
        """Return [n] int64."""
        ...


class RecordedChoice:
    """Chooses for the rows of a step, padding included.

    Args:
        model: of this rank.
        table: takes the tokens.
        choose: chooses from whole logits.
    """

    def __init__(self, model: Decoder, table: TokenTable, choose: Choose) -> None:
        assert model.group is not None and model.vocabulary is not None, "the model is shared out"
        self._model = model
        self._group = model.group
        self._vocabulary = model.vocabulary
        self._table = table
        self._choose = choose

    def choose(self, hidden: Tensor, settings: DeviceSampling, *, penalties: bool, apart: bool) -> Tensor:
        """Choose a token for each row of hidden states and keep it in the table.

        Args:
            hidden: [n, hidden_size].
            settings: of the rows; a slot of -1 is padding.
            penalties: whether any row may have some.
            apart: no row has filters or penalties, so that ranks only tell each other their best tokens.

        Returns:
            [n] int64, the same on every rank; `NO_TOKEN` where nothing may be chosen and in padding rows.
        """
        if apart:
            columns = (settings.seeds[:, None], settings.positions[:, None], settings.temperature[:, None])
            own = self._model.own_logits(hidden)
            tokens = choose_together(own, *columns, share=self._vocabulary, group=self._group)
            tokens = tokens.where(settings.slots >= 0, NO_TOKEN)
        else:
            # Every rank chooses from the same numbers; that all did alike is not left to chance.
            logits = self._model.logits(hidden)
            tokens = self._choose(logits, settings, self._table, penalties=penalties)
            self._group.copy_from_first(tokens)
        self._table.store(settings.slots, settings.positions, tokens)
        return tokens
