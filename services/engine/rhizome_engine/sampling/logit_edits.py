"""Changes to logits before a token is chosen: penalties, biases, bad words, masks.

Which rows are changed is known on the host; what they are changed by is computed on the device for those
rows only.
"""

from __future__ import annotations

import functools
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from rhizome_engine.batch import SamplingBatch, TokenMasks
from rhizome_engine.sampling.row_blocks import row_chunks
from rhizome_engine.sampling.token_table import TokenTable


@functools.cache
def _bits_of_bytes(device: torch.device) -> Tensor:
    """Return [256, 8] bool, the bits of each byte from the lowest on."""
    numbers = np.arange(256, dtype=np.uint8)[:, None]
    bits = np.unpackbits(numbers, axis=1, bitorder="little").astype(np.bool_)
    return torch.from_numpy(bits).to(device)


class LogitEdits:
    """What a step changes in its logits.

    Args:
        batch: the rows' settings.
        masks: of a grammar, for some rows; together with the rows' own lists of allowed tokens.
        penalties: whether they are among the changes, or made elsewhere before.

    Attributes:
        arrays: what the device needs.
    """

    def __init__(self, batch: SamplingBatch, masks: TokenMasks | None, *, penalties: bool = True) -> None:
        self.arrays: dict[str, NDArray[Any]] = {}
        self._history_length = 0
        self._counts = False
        self._masks: list[str] = []
        if penalties:
            self._add_penalties(batch)
        if batch.biases is not None:
            biases = batch.biases
            self._add("bias", rows=biases.rows, tokens=biases.token_ids, amounts=biases.amounts)
        if batch.bad_words is not None:
            words = batch.bad_words
            self._add("bad", rows=words.rows, prefixes=words.prefixes, last=words.last)
            self._add("bad", slots=batch.slots[words.rows], positions=batch.positions[words.rows])
        for name, mask in (("allowed", batch.allowed), ("grammar", masks)):
            if mask is not None and len(mask.rows):
                self._masks.append(name)
                self._add(name, rows=mask.rows, bytes=mask.bits.view(np.uint8))

    def apply(self, logits: Tensor, staged: dict[str, Tensor], table: TokenTable) -> None:
        """Change logits, [n, vocab_size] float32, in place: penalties, then biases, then bans.

        Args:
            logits: of all rows of the batch.
            staged: `arrays` on the device.
            table: all earlier tokens of the rows that look at them.
        """
        if "penalty.rows" in staged:
            self._penalise(logits, staged, table)
        if "bias.rows" in staged:
            places = (staged["bias.rows"], staged["bias.tokens"])
            logits.index_put_(places, staged["bias.amounts"], accumulate=True)
        if "bad.rows" in staged:
            _ban_words(logits, staged, table)
        for name in self._masks:
            mask_logits(logits, staged[f"{name}.rows"], staged[f"{name}.bytes"])

    def _add(self, edit: str, **arrays: NDArray[Any]) -> None:
        self.arrays.update({f"{edit}.{name}": array for name, array in arrays.items()})

    def _add_penalties(self, batch: SamplingBatch) -> None:
        counting = (batch.frequency_penalty != 0.0) | (batch.presence_penalty != 0.0)
        rows = np.flatnonzero(counting | (batch.repetition_penalty != 1.0))
        if not len(rows):
            return
        self._history_length = int(batch.positions[rows].max())
        self._counts = bool(counting.any())
        self._add(
            "penalty",
            rows=rows,
            slots=batch.slots[rows],
            positions=batch.positions[rows],
            num_prompt=batch.num_prompt[rows],
            repetition=batch.repetition_penalty[rows, None],
            frequency=batch.frequency_penalty[rows, None],
            presence=batch.presence_penalty[rows, None],
        )

    def _penalise(self, logits: Tensor, staged: dict[str, Tensor], table: TokenTable) -> None:
        settings = {
            name.removeprefix("penalty."): values
            for name, values in staged.items()
            if name.startswith("penalty.")
        }
        for chunk in row_chunks(len(settings["rows"]), logits.device):
            part = {name: values[chunk] for name, values in settings.items()}
            history = table.tokens[part["slots"], : self._history_length].long()
            penalise(logits, history, part, counting=self._counts)


def penalise(logits: Tensor, history: Tensor, settings: dict[str, Tensor], *, counting: bool) -> None:
    """Change the logits of tokens that occurred; definitions as in vLLM and OpenAI's reference.

    Each occurrence computes its token's new logit from the old one, so it does not matter which of them
    writes it.

    Args:
        logits: of all rows, changed.
        history: [k, longest] int64, tokens of the rows that are penalised; they know those below `positions`.
        settings: `rows`, `positions`, `num_prompt` [k], and the penalties [k, 1].
        counting: whether any row has a frequency or presence penalty.
    """
    rows, repetition = settings["rows"][:, None], settings["repetition"]
    positions = torch.arange(history.shape[1], device=logits.device)
    is_known = positions < settings["positions"][:, None]
    history = history.where(is_known, history[:, :1])  # once more the first token
    old = logits[rows, history]
    new = torch.where(old > 0, old / repetition, old * repetition)
    if counting:
        in_output = is_known & (positions >= settings["num_prompt"][:, None])
        counts = torch.zeros(len(rows), logits.shape[1], dtype=torch.int32, device=logits.device)
        counts = counts.scatter_add_(1, history, in_output.int()).gather(1, history)
        new -= settings["frequency"] * counts + settings["presence"] * (counts > 0)
    logits[rows, history] = new


def _ban_words(logits: Tensor, staged: dict[str, Tensor], table: TokenTable) -> None:
    """Ban the last token of a sequence where the tokens before it are the row's latest."""
    prefixes = staged["bad.prefixes"]
    length = prefixes.shape[1]
    before = torch.arange(-length, 0, device=logits.device) + staged["bad.positions"][:, None]
    latest = table.tokens[staged["bad.slots"][:, None], before.clamp(min=0)]
    matches = ((prefixes < 0) | ((prefixes == latest) & (before >= 0))).all(dim=-1)
    amounts = torch.zeros_like(matches, dtype=logits.dtype).masked_fill_(matches, float("-inf"))
    logits.index_put_((staged["bad.rows"], staged["bad.last"]), amounts, accumulate=True)


def mask_logits(logits: Tensor, rows: Tensor, mask_bytes: Tensor) -> None:
    """Ban all tokens but those whose bits are set.

    Args:
        logits: [n, vocab_size].
        rows: [k].
        mask_bytes: [k, at least vocab_size / 8] uint8, the bits of little-endian words.
    """
    num_rows, vocab_size = len(rows), logits.shape[1]
    bits = _bits_of_bytes(logits.device).index_select(0, mask_bytes.flatten().int()).view(num_rows, -1)
    banned = bits[:, :vocab_size].logical_not()
    if num_rows == len(logits):  # rows ascend, so these are all of them
        logits.masked_fill_(banned, float("-inf"))
    else:
        logits[rows] = logits[rows].masked_fill_(banned, float("-inf"))
