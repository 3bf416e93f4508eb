"""What the scheduler asks the model runner to compute in one step.

A batch is a ragged list of rows, one per running request, without phases: a row's `query_len` is 1 when it
decodes and larger when it prefills a chunk, and both mix freely.

    tokens of row i in the flat arrays:   query_start[i] : query_start[i + 1]
    keys of row i in the KV pool:         positions 0 .. context_len[i] - 1, in pages page_table[i]
    (the row's own new tokens are the last query_len of those context_len positions)
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from rhizome_engine.sampling.params import SamplingParams

Int32 = NDArray[np.int32]
Int64 = NDArray[np.int64]


@dataclass(frozen=True, slots=True)
class SampleRow:
    """A row of the batch whose last token's logits are turned into a new token.

    Attributes:
        row: index of the row in the batch.
        params: how to choose the token.
        position: index of the new token in prompt + output; with the seed it fixes the random number.
        seed: the request's seed, drawn once at admission where the caller gave none.
        prompt_ids: token ids of the prompt (for penalties).
        output_ids: token ids generated so far (for penalties).
        banned_ids: token ids that must not be chosen now (end-of-sequence tokens below `min_tokens`).
    """

    row: int
    params: SamplingParams
    position: int
    seed: int
    prompt_ids: list[int]
    output_ids: list[int]
    banned_ids: tuple[int, ...] = ()


@dataclass(frozen=True, slots=True)
class Batch:
    """One step's work.

    Attributes:
        token_ids: [num_tokens] int64.
        positions: [num_tokens] int64, position of each token in its sequence.
        slot_mapping: [num_tokens] int64, where each token's key and value go: page * page_size + offset.
        query_start: [num_rows + 1] int32, where each row's tokens start.
        context_len: [num_rows] int32, keys of each row after this step's tokens are written.
        page_table: [num_rows, max_pages] int32, padded with 0.
        sample_rows: the rows that need a new token; rows in the middle of a prompt do not.
    """

    token_ids: Int64
    positions: Int64
    slot_mapping: Int64
    query_start: Int32
    context_len: Int32
    page_table: Int32
    sample_rows: list[SampleRow]

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
    """Log probability of a chosen token and of the likeliest ones.

    Attributes:
        logprob: of the chosen token.
        top: (token id, log probability), best first, `SamplingParams.top_logprobs` of them.
    """

    logprob: float
    top: list[tuple[int, float]]


@dataclass(frozen=True, slots=True)
class StepOutput:
    """What the model runner computed.

    Attributes:
        token_ids: one per `Batch.sample_rows`, in that order.
        logprobs: one per `Batch.sample_rows`, None where the request asked for none.
    """

    token_ids: list[int]
    logprobs: list[TokenLogprobs | None]
