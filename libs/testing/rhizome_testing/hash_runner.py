"""A model runner whose answers depend on every slot of the KV pool that it should read, and on nothing else.

Each slot remembers a hash of its token, its position and the slot before it *as read through the page table*;
the next token is a hash of the whole context read back the same way. So any mix-up of slots, any page evicted
or handed out too early, any wrong copy or position changes the text. `expected_tokens` computes the same text
without pages.

A vector is pooled from the same hashes, in which a token that was counted twice or never shows;
`expected_embedding` computes it without pages.

Steps are computed in the order of their launch, and tokens are chosen when `sample` is called.
"""

from __future__ import annotations

import zlib
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from rhizome_engine.batch import (
    Batch,
    Float32,
    Int64,
    PageCopy,
    PooledRow,
    StepOutput,
    TokenLogprobs,
    TokenMasks,
)
from rhizome_engine.core.runner_protocol import StepCounts
from rhizome_engine.embedding.pooling import EmbeddingParams, Pooling

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
        num_host_pages: pages beyond the pool's that only copies between the tiers may touch.
        counts: stay 0: nothing is recorded.
        batches: how many tokens each row of each step had, oldest first.
        fail_next: the results of the next steps are an error, this many times.
        fail_next_launch: the next steps cannot be launched, this many times.
        drop_copies: steps that fail so do not copy pages either.
        fail_next_sample: choosing tokens in the next steps is an error, this many times.
    """

    def __init__(
        self,
        num_pages: int,
        page_size: int,
        config: HashModelConfig | None = None,
        *,
        num_host_pages: int = 0,
    ) -> None:
        self.config = config or HashModelConfig()
        self.num_pages = num_pages
        self.num_host_pages = num_host_pages
        self.page_size = page_size
        self.batches: list[list[int]] = []
        self.counts = StepCounts()
        self.fail_next = 0
        self.fail_next_launch = 0
        self.fail_next_sample = 0
        self._slots = np.full((num_pages + num_host_pages) * page_size, _GARBAGE, np.int64)
        self.drop_copies = False
        self._chosen: dict[tuple[int, int], int] = {}
        self._sums: dict[int, Float32] = {}

    def launch(self, batch: Batch) -> HashStep:
        """Write every token of the batch.

        Raises:
            AssertionError: the batch contradicts itself.
            RuntimeError: the test asked for a failure.
        """
        if self.fail_next_launch:
            self.fail_next_launch -= 1
            raise RuntimeError("the test asked for this failure")
        self.batches.append(np.diff(batch.query_start).tolist())
        assert len(set(batch.slot_mapping.tolist())) == batch.num_tokens, "two tokens share a slot"
        for copy in batch.page_copies:
            if not (self.drop_copies and self.fail_next):
                self._copy_pages(copy)
        assert int(batch.slot_mapping.max()) < self.num_pages * self.page_size, "a token on the host"
        token_ids = batch.token_ids.copy()
        for place, slot in zip(batch.late.tolist(), batch.late_slots.tolist(), strict=True):
            token_ids[place] = self._chosen[slot, int(batch.positions[place])]
        for row in range(batch.num_rows):
            self._write(batch, token_ids, row)
        vectors = [self._pool(batch, row) for row in batch.pooled]
        fails = self.fail_next > 0
        self.fail_next -= fails
        return HashStep(self, batch, [vector for vector in vectors if vector is not None], fails=fails)

    def use_idle_time(self) -> bool:
        """There is nothing to make faster."""
        return False

    def choose(self, batch: Batch, index: int, masks: TokenMasks | None) -> int:
        """The next token of a sampled row."""
        sampling = batch.sampling
        context = self._context_slots(batch, int(sampling.rows[index]))
        assert sampling.positions[index] == len(context)
        allowed = self._allowed(batch, index, masks)
        token = next_token(self._slots[context], self.config.vocab_size)
        while not allowed[token]:
            token = (token + 1) % self.config.vocab_size
        self._chosen[int(sampling.slots[index]), len(context)] = token
        return token

    def _pool(self, batch: Batch, row: PooledRow) -> Float32 | None:
        """Take in a row that is pooled; the vector of one that ends."""
        start, end = int(batch.query_start[row.row]), int(batch.query_start[row.row + 1])
        states = self._slots[batch.slot_mapping[start:end]]
        match row.params.pooling:
            case Pooling.LAST_TOKEN:
                total = _hidden(states[-1:])
            case Pooling.CLS:
                total = _hidden(states[: int(row.begins)])
            case Pooling.MEAN:
                total = _hidden(states)
        if not row.begins and row.params.pooling is not Pooling.LAST_TOKEN:
            total = total + self._sums.pop(row.slot)
        if row.ends:
            return _vector(total, int(batch.context_len[row.row]), row.params)
        self._sums[row.slot] = total
        return None

    def _allowed(self, batch: Batch, index: int, masks: TokenMasks | None) -> NDArray[np.bool_]:
        allowed = np.ones(self.config.vocab_size, np.bool_)
        for some in filter(None, (batch.sampling.allowed, masks)):
            for row in np.flatnonzero(some.rows == index):
                bits = np.unpackbits(some.bits[row].view(np.uint8), bitorder="little")
                allowed &= bits[: len(allowed)].astype(np.bool_)
        biases = batch.sampling.biases
        if biases is not None:
            allowed[biases.token_ids[(biases.rows == index) & np.isneginf(biases.amounts)]] = False
        return allowed

    def _copy_pages(self, copy: PageCopy) -> None:
        """Copy the first slots of each page; the rest of the targets becomes garbage."""
        sources, targets, num_slots = copy
        from_host, to_host = sources >= self.num_pages, targets >= self.num_pages
        assert len(sources) == len(targets) == len({*sources.tolist()}) == len({*targets.tolist()}) > 0
        assert not set(sources.tolist()) & set(targets.tolist())
        assert len({*from_host.tolist()}) == len({*to_host.tolist()}) == 1
        if from_host[0] or to_host[0]:
            assert num_slots == self.page_size and from_host[0] != to_host[0]
        else:
            assert 0 < num_slots < self.page_size
        pages = self._slots.reshape(-1, self.page_size)
        kept = pages[sources, :num_slots]
        pages[targets] = _GARBAGE
        pages[targets, :num_slots] = kept

    def _write(self, batch: Batch, token_ids: Int64, row: int) -> None:
        start, end = int(batch.query_start[row]), int(batch.query_start[row + 1])
        context = self._context_slots(batch, row)
        positions = batch.positions[start:end]
        assert positions.tolist() == list(range(len(context) - (end - start), len(context)))
        assert batch.slot_mapping[start:end].tolist() == context[positions].tolist()
        for index in range(start, end):
            position = int(batch.positions[index])
            before = int(self._slots[context[position - 1]]) if position else 0
            self._slots[context[position]] = _mix(before, int(token_ids[index]), position)

    def _context_slots(self, batch: Batch, row: int) -> Int64:
        positions = np.arange(int(batch.context_len[row]))
        pages = batch.page_table[row, positions // self.page_size].astype(np.int64)
        return np.asarray(pages * self.page_size + positions % self.page_size, np.int64)


class HashStep:
    """A step of the hash runner under way."""

    def __init__(self, runner: HashRunner, batch: Batch, vectors: list[Float32], *, fails: bool) -> None:
        self._runner = runner
        self._batch = batch
        self._vectors = vectors
        self._fails = fails
        self._token_ids: list[int] | None = None

    def sample(self, masks: TokenMasks | None) -> None:
        """Choose tokens.

        Raises:
            RuntimeError: the test asked for a failure.
        """
        assert self._token_ids is None, "sampled twice"
        if self._runner.fail_next_sample:
            self._runner.fail_next_sample -= 1
            raise RuntimeError("the test asked for this failure")
        rows = range(len(self._batch.sampling))
        self._token_ids = [self._runner.choose(self._batch, index, masks) for index in rows]

    def result(self) -> StepOutput:
        """The chosen tokens, with made-up log probabilities.

        Raises:
            RuntimeError: the test asked for a failure.
        """
        assert self._token_ids is not None, "not sampled"
        if self._fails:
            raise RuntimeError("the test asked for this failure")
        wanted = self._batch.sampling.top_logprobs.tolist()
        return StepOutput(
            self._token_ids,
            [
                None if count < 0 else TokenLogprobs(-0.5, [(token, -0.5)] * count)
                for token, count in zip(self._token_ids, wanted, strict=True)
            ],
            [
                [TokenLogprobs(-float(target), [(target, -0.5)] * top) for target in targets.tolist()]
                for _, targets, top in self._batch.prompt_scores
            ],
            self._vectors,
        )


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


def expected_embedding(prompt_ids: list[int], params: EmbeddingParams) -> list[float]:
    """What `HashRunner` makes of a prompt, without pages."""
    states: list[int] = []
    for position, token in enumerate(prompt_ids):
        states.append(_mix(states[-1] if states else 0, token, position))
    chosen = {
        Pooling.MEAN: states,
        Pooling.LAST_TOKEN: states[-1:],
        Pooling.CLS: states[:1],
    }[params.pooling]
    values: list[float] = _vector(_hidden(np.array(chosen, np.int64)), len(prompt_ids), params).tolist()
    return values


def _hidden(states: Int64) -> Float32:
    """The sum of the hidden states of some slots: small whole numbers, exact in any order."""
    parts = np.stack([states % 97, states // 97 % 89, np.ones_like(states)])
    return np.asarray(parts.sum(axis=1), np.float32)


def _vector(total: Float32, num_tokens: int, params: EmbeddingParams) -> Float32:
    mean = total / num_tokens if params.pooling is Pooling.MEAN else total
    return np.asarray(mean / np.linalg.norm(mean) if params.normalize else mean, np.float32)


def _mix(before: int, token: int, position: int) -> int:
    return zlib.crc32(f"{before},{token},{position}".encode())
