"""A model runner whose answers depend on every slot of the KV pool that it should read, and on nothing else.

Each slot remembers a hash of its token, its position and the slot before it *as read through the page table*;
the next token is a hash of the whole context read back the same way. So any mix-up of slots, any page evicted
or handed out too early, any wrong copy or position changes the text. `expected_tokens` computes the same text
without pages.
"""

from __future__ import annotations

import zlib
from dataclasses import dataclass

import numpy as np

from rhizome_engine.batch import Batch, SampleRow, StepOutput, TokenLogprobs

_GARBAGE = 0xDEAD_BEEF


@dataclass(frozen=True, slots=True)
class HashModelConfig:
    """The limits of the pretended model.

    Attributes:
        vocab_size: token ids are below this.
        max_position_embeddings: context window in tokens.
    """

    vocab_size: int = 1000
    max_position_embeddings: int = 4096


class HashRunner:
    """Stands in for the real runner where a test is about pages and order.

    Attributes:
        batches: how many tokens each row of each step had, oldest first.
        fail_next: raise in the next steps, this many times.
    """

    def __init__(self, num_pages: int, page_size: int, config: HashModelConfig | None = None) -> None:
        self.config = config or HashModelConfig()
        self.num_pages = num_pages
        self.page_size = page_size
        self.batches: list[list[int]] = []
        self.fail_next = 0
        self._slots = np.full(num_pages * page_size, _GARBAGE, np.int64)

    def run(self, batch: Batch) -> StepOutput:
        """Write every token of the batch, then answer the rows that sample.

        Raises:
            AssertionError: the batch contradicts itself.
            RuntimeError: the test asked for a failure.
        """
        if self.fail_next:
            self.fail_next -= 1
            raise RuntimeError("the test asked for this failure")
        self.batches.append(np.diff(batch.query_start).tolist())
        assert len(set(batch.slot_mapping.tolist())) == batch.num_tokens, "two tokens share a slot"
        for row in range(batch.num_rows):
            self._write(batch, row)
        samples = [self._sample(batch, sample) for sample in batch.sample_rows]
        return StepOutput([token for token, _ in samples], [logprobs for _, logprobs in samples])

    def copy_page(self, src: int, dst: int, num_slots: int) -> None:
        """Copy the first slots of a page; the rest of the destination becomes garbage."""
        assert src != dst and 0 < num_slots < self.page_size
        start, end = dst * self.page_size, (dst + 1) * self.page_size
        source = self._slots[src * self.page_size : src * self.page_size + num_slots].copy()
        self._slots[start:end] = _GARBAGE
        self._slots[start : start + num_slots] = source

    def _write(self, batch: Batch, row: int) -> None:
        start, end = int(batch.query_start[row]), int(batch.query_start[row + 1])
        context = self._context_slots(batch, row)
        positions = batch.positions[start:end]
        assert positions.tolist() == list(range(len(context) - (end - start), len(context)))
        assert batch.slot_mapping[start:end].tolist() == context[positions].tolist()
        for index in range(start, end):
            position = int(batch.positions[index])
            before = int(self._slots[context[position - 1]]) if position else 0
            self._slots[context[position]] = _mix(before, int(batch.token_ids[index]), position)

    def _sample(self, batch: Batch, sample: SampleRow) -> tuple[int, TokenLogprobs | None]:
        context = self._context_slots(batch, sample.row)
        assert sample.position == len(context) == len(sample.prompt_ids) + len(sample.output_ids)
        token = next_token(self._slots[context], self.config.vocab_size)
        while token in sample.banned_ids:
            token = (token + 1) % self.config.vocab_size
        wanted = sample.params.top_logprobs
        return token, None if wanted is None else TokenLogprobs(-0.5, [(token, -0.5)] * wanted)

    def _context_slots(self, batch: Batch, row: int) -> np.ndarray[tuple[int], np.dtype[np.int64]]:
        positions = np.arange(int(batch.context_len[row]))
        pages = batch.page_table[row, positions // self.page_size].astype(np.int64)
        return np.asarray(pages * self.page_size + positions % self.page_size, np.int64)


def next_token(states: np.ndarray[tuple[int], np.dtype[np.int64]], vocab_size: int) -> int:
    """The token that follows a context, from the states of all its slots."""
    return zlib.crc32(states.tobytes()) % vocab_size


def expected_tokens(prompt_ids: list[int], count: int, vocab_size: int = 1000) -> list[int]:
    """What `HashRunner` answers to a prompt, without pages."""
    states: list[int] = []
    tokens = list(prompt_ids)
    for position in range(len(prompt_ids) + count):
        if position >= len(prompt_ids):
            tokens.append(next_token(np.array(states, np.int64), vocab_size))
        states.append(_mix(states[-1] if states else 0, tokens[position], position))
    return tokens[len(prompt_ids) :]


def _mix(before: int, token: int, position: int) -> int:
    return zlib.crc32(f"{before},{token},{position}".encode())
