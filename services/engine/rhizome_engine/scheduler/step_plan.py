"""One step as the scheduler decided it, kept until its tokens were read."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import NamedTuple

from rhizome_engine.batch import Int64, PageCopy
from rhizome_engine.embedding.pooling import Pooling
from rhizome_engine.kvcache.sequence_pages import SequencePages
from rhizome_engine.scheduler.isolation import Turn
from rhizome_engine.scheduler.request import Request


class Chunk(NamedTuple):
    """Known tokens of one request that a step computes: `num_tokens` of them from position `start` on.

    Attributes:
        request: whose.
        start: position of the first.
        num_tokens: how many.
        samples: whether a new token is chosen after the last.
        occupant: `SlotTable.occupant` of the request's slot.
    """

    request: Request
    start: int
    num_tokens: int
    samples: bool
    occupant: int

    @property
    def end(self) -> int:
        """Tokens computed after the step."""
        return self.start + self.num_tokens

    @property
    def score_end(self) -> int:
        """Log probabilities of the prompt tokens between `start + 1` and this position are wanted.

        Those already reported, before a preemption, are among them.
        """
        if self.request.prompt_logprobs is None:
            return self.start + 1
        return max(min(self.end + 1, self.request.num_prompt), self.start + 1)

    @property
    def gives_vector(self) -> bool:
        """Whether a vector comes out: the request wants one, and its last token is computed."""
        return self.request.embedding is not None and self.end == self.request.num_prompt

    @property
    def is_pooled(self) -> bool:
        """Whether its tokens count towards a vector."""
        embedding = self.request.embedding
        if embedding is None:
            return False
        match embedding.pooling:
            case Pooling.MEAN:
                return True
            case Pooling.LAST_TOKEN:
                return self.gives_vector
            case Pooling.CLS:
                return self.start == 0 or self.gives_vector


@dataclass(frozen=True, slots=True)
class StepPlan:
    """Rows of a step: first those that compute one token and choose the next, then chunks.

    Attributes:
        decode: requests of the first rows.
        decode_slots: [len(decode)] int64, their slots.
        decode_positions: [len(decode)] int64, position of the token that each computes.
        chunks: the other rows.
        sampled: requests that get a new token, in the order of rows.
        sampled_slots: [len(sampled)] int64.
        sampled_positions: [len(sampled)] int64, position of the new token.
        occupants: [len(sampled)] int64, `SlotTable.occupant` of those slots.
        started: requests that run for the first time.
        page_copies: for prefixes that end inside a page, and between the tiers.
        loading: pages of requests that get what the host has of them.
        new_histories: requests whose earlier tokens the device has to be told.
        prepared: requests that the copies and histories are for; they may have no row yet.
        turn: what larger tenants do in it, None where tenants are about equal.
        launched: when it was decided, on the core's clock.
    """

    decode: list[Request]
    decode_slots: Int64
    decode_positions: Int64
    chunks: list[Chunk]
    sampled: list[Request]
    sampled_slots: Int64
    sampled_positions: Int64
    occupants: Int64
    started: list[Request] = field(default_factory=list)
    page_copies: list[PageCopy] = field(default_factory=list)
    loading: list[SequencePages] = field(default_factory=list)
    new_histories: list[Request] = field(default_factory=list)
    prepared: list[Request] = field(default_factory=list)
    turn: Turn | None = None
    launched: float = 0.0

    @property
    def requests(self) -> list[Request]:
        """Everybody who needs the step, each once."""
        return list(dict.fromkeys([*self.decode, *(chunk.request for chunk in self.chunks), *self.prepared]))
