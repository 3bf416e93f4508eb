"""What the scheduler asks the model runner to compute in one step, and what comes back.

A batch is a ragged list of rows, one per running request, without phases: a row's `query_len` is 1 when it
decodes and larger when it prefills a chunk, and both mix freely.

    tokens of row i in the flat arrays:   query_start[i] : query_start[i + 1]
    keys of row i in the KV pool:         positions 0 .. context_len[i] - 1, in pages page_table[i]
    (the row's own new tokens are the last query_len of those context_len positions)

A running request has a *slot* from its admission to its end or preemption. Per slot the runner keeps a row of
token ids, [max_slots, max_context]: each new token is written there where it was chosen, so the next step can
be launched before the host has read this one's tokens, and penalties need no history from the host.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from rhizome_engine.embedding.pooling import EmbeddingParams

Int32 = NDArray[np.int32]
Int64 = NDArray[np.int64]
UInt64 = NDArray[np.uint64]
Float32 = NDArray[np.float32]


class PageCopy(NamedTuple):
    """Pages whose contents are needed in other pages as well.

    Numbers from the pool's size on are pages of the host tier, the first one of it first.

    Attributes:
        sources: [n] int32.
        targets: [n] int32; all in one tier, as the sources are, and not both in the host's.
        num_slots: so many of their first tokens; all of them, between tiers.
    """

    sources: Int32
    targets: Int32
    num_slots: int


class SlotHistory(NamedTuple):
    """All known tokens of a request that has just been given a slot: [n] int32."""

    slot: int
    token_ids: Int32


class PromptScores(NamedTuple):
    """A row whose prompt tokens' log probabilities are wanted.

    Attributes:
        row: index of the row in the batch.
        targets: [m] int64, the prompt tokens that follow the first m tokens of the row's chunk.
        top: how many rivals to report beside each.
    """

    row: int
    targets: Int64
    top: int


class PooledRow(NamedTuple):
    """A row whose hidden states become, with those of earlier steps, one vector.

    A prompt that takes several steps keeps its slot: the runner sums up there what it has seen.

    Attributes:
        row: index of the row in the batch.
        slot: the request's slot.
        params: how to pool.
        begins: the row has the first token of the prompt; whatever the slot's sum held is forgotten.
        ends: the row has the last token; the vector comes out.
    """

    row: int
    slot: int
    params: EmbeddingParams
    begins: bool
    ends: bool


@dataclass(frozen=True, slots=True)
class TokenMasks:
    """Which tokens some of the sampled rows may choose.

    Attributes:
        rows: [k] int64, indices into the arrays of `SamplingBatch`, ascending.
        bits: [k, ceil(vocab_size / 32)] int32; bit t % 32 of word t // 32 is 1 where token t is allowed.
    """

    rows: Int64
    bits: Int32


@dataclass(frozen=True, slots=True)
class LogitBiases:
    """Amounts to add to logits; -inf bans a token.

    Attributes:
        rows: [m] int64, indices into the arrays of `SamplingBatch`.
        token_ids: [m] int64, within the vocabulary.
        amounts: [m] float32.
    """

    rows: Int64
    token_ids: Int64
    amounts: Float32


@dataclass(frozen=True, slots=True)
class BadWords:
    """Token sequences that must not appear in an output: their last token is banned after the others.

    Attributes:
        rows: [m] int64, indices into the arrays of `SamplingBatch`.
        prefixes: [m, longest] int64, the tokens before the last one, padded with -1 on the left.
        last: [m] int64, the last token of each sequence.
    """

    rows: Int64
    prefixes: Int64
    last: Int64


@dataclass(frozen=True, slots=True)
class SamplingBatch:
    """The rows of a step that need a new token, as arrays of length n, so that no Python runs per row.

    Attributes:
        rows: int64, index of the row in the batch, ascending.
        slots: int64, the row's slot.
        positions: int64, index of the new token in prompt + output; with the seed it fixes the random number.
        num_prompt: int64, tokens of the prompt; what follows them in the slot's tokens is output.
        seeds: uint64, the request's seed, drawn once at admission where the caller gave none.
        temperature: float32, 0 is greedy.
        top_k: int64, 0 is off.
        top_p: float32, 1 is off.
        min_p: float32, 0 is off.
        repetition_penalty: float32, 1 is off.
        frequency_penalty: float32, 0 is off.
        presence_penalty: float32, 0 is off.
        top_logprobs: int64, rivals to report beside the chosen token's log probability, -1 for no report.
        biases: biases and banned tokens, None for none.
        allowed: rows with a fixed list of allowed tokens, None for none.
        bad_words: forbidden sequences, None for none.
    """

    rows: Int64
    slots: Int64
    positions: Int64
    num_prompt: Int64
    seeds: UInt64
    temperature: Float32
    top_k: Int64
    top_p: Float32
    min_p: Float32
    repetition_penalty: Float32
    frequency_penalty: Float32
    presence_penalty: Float32
    top_logprobs: Int64
    biases: LogitBiases | None = None
    allowed: TokenMasks | None = None
    bad_words: BadWords | None = None

    def __len__(self) -> int:
        """Rows that need a token."""
        return len(self.rows)


@dataclass(frozen=True, slots=True)
class Batch:
    """One step's work.

    Attributes:
        token_ids: [num_tokens] int64; whatever stands where `late` points is ignored.
        positions: [num_tokens] int64, position of each token in its sequence.
        slot_mapping: [num_tokens] int64, where each token's key and value go: page * page_size + offset.
        query_start: [num_rows + 1] int32, where each row's tokens start.
        context_len: [num_rows] int32, keys of each row after this step's tokens are written.
        page_table: [num_rows, max_pages] int32; what stands beyond a row's own pages means nothing.
        slots: [num_rows] int64, the row's slot, each once.
        sampling: the rows that need a new token; rows in the middle of a prompt do not.
        late: [d] int64, places in `token_ids` of tokens that the step before chose and the host has not read.
        late_slots: [d] int64, slots of those; token d is the slot's token at the position of that place.
        histories: slots that are taken over by a request whose sampling looks at earlier tokens.
        page_copies: done in this order before anything else.
        prompt_scores: rows that want log probabilities of prompt tokens.
        pooled: rows that count towards a vector.
        constrained: a row that needs a token follows a grammar: masks may come when tokens are chosen.
    """

    token_ids: Int64
    positions: Int64
    slot_mapping: Int64
    query_start: Int32
    context_len: Int32
    page_table: Int32
    slots: Int64
    sampling: SamplingBatch
    late: Int64 = field(default_factory=lambda: np.empty(0, np.int64))
    late_slots: Int64 = field(default_factory=lambda: np.empty(0, np.int64))
    histories: list[SlotHistory] = field(default_factory=list)
    page_copies: list[PageCopy] = field(default_factory=list)
    prompt_scores: list[PromptScores] = field(default_factory=list)
    pooled: list[PooledRow] = field(default_factory=list)
    constrained: bool = False

    @property
    def num_tokens(self) -> int:
        """Tokens computed in this step."""
        return len(self.token_ids)

    @property
    def num_rows(self) -> int:
        """Requests in this step."""
        return len(self.context_len)


@dataclass(frozen=True, slots=True)
class TokenLogprobs:
    """Log probability of a token and of the likeliest ones in its place.

    Attributes:
        logprob: of the chosen token, or of the prompt's token.
        top: (token id, log probability), best first, as many as the request asked for.
    """

    logprob: float
    top: list[tuple[int, float]]


NO_TOKEN = -1
"""In place of a token id where none could be chosen: all were forbidden, or the logits are no numbers."""


@dataclass(frozen=True, slots=True)
class StepOutput:
    """What the model runner computed.

    Attributes:
        token_ids: one per row of `Batch.sampling`, in that order; `NO_TOKEN` where none could be chosen.
        logprobs: one per row of `Batch.sampling`, None where the request asked for none.
        prompt_logprobs: one list per `Batch.prompt_scores`, one entry per target.
        embeddings: [hidden_size] float32, one per `Batch.pooled` that ends, in that order.
    """

    token_ids: list[int]
    logprobs: list[TokenLogprobs | None]
    prompt_logprobs: list[list[TokenLogprobs]] = field(default_factory=list)
    embeddings: list[Float32] = field(default_factory=list)
