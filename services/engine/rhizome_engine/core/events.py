"""What the engine core tells about a request: one `StartedEvent`, some `TokensEvent`s, one last event."""

from __future__ import annotations

from dataclasses import dataclass

from rhizome_engine.batch import Float32, TokenLogprobs
from rhizome_engine.scheduler.request import FinishReason, Request, Timings, Usage
from rhizome_transport.errors import EngineError


@dataclass(frozen=True, slots=True)
class StartedEvent:
    """The first chunk of the prompt was computed.

    Attributes:
        request: whose.
        prompt_tokens: tokens in the prompt.
        cached_tokens: prompt tokens found in the prefix cache.
    """

    request: Request
    prompt_tokens: int
    cached_tokens: int


@dataclass(frozen=True, slots=True)
class PromptLogprobsEvent:
    """Log probabilities of prompt tokens, in order from the second one on; in pieces.

    Attributes:
        request: whose.
        logprobs: one per prompt token.
    """

    request: Request
    logprobs: list[TokenLogprobs]


@dataclass(frozen=True, slots=True)
class EmbeddingEvent:
    """The vector that a request wanted; its end follows.

    Attributes:
        request: whose.
        values: [hidden_size] float32, finite.
    """

    request: Request
    values: Float32


@dataclass(frozen=True, slots=True)
class TokensEvent:
    """Tokens came out. The stop token that ends a request is no output: it is in `FinishedEvent`.

    Attributes:
        request: whose.
        token_ids: new ones.
        logprobs: one per token where the request asked for them, else None.
    """

    request: Request
    token_ids: list[int]
    logprobs: list[TokenLogprobs] | None


@dataclass(frozen=True, slots=True)
class FinishedEvent:
    """The request ended well, or was cancelled; nothing follows.

    Attributes:
        request: which.
        reason: why it ended.
        stop_token_id: the token that ended it, where the reason is `STOP`.
        usage: tokens counted.
        timings: where the time went.
    """

    request: Request
    reason: FinishReason
    stop_token_id: int | None
    usage: Usage
    timings: Timings


@dataclass(frozen=True, slots=True)
class FailedEvent:
    """The request could not be finished; nothing follows.

    Attributes:
        request: which.
        error: why.
        usage: tokens counted.
        timings: where the time went.
    """

    request: Request
    error: EngineError
    usage: Usage
    timings: Timings


Event = StartedEvent | PromptLogprobsEvent | EmbeddingEvent | TokensEvent | FinishedEvent | FailedEvent
