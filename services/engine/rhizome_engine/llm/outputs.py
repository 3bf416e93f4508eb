"""What the library answers."""

from __future__ import annotations

from dataclasses import dataclass

from rhizome_engine.batch import Float32, TokenLogprobs
from rhizome_engine.scheduler.request import Timings, Usage


@dataclass(frozen=True, slots=True)
class Completion:
    """What came of one prompt.

    Attributes:
        prompt_token_ids: the prompt as the model saw it.
        index: which of the prompt's `n` answers this is.
        text: the answer; the prompt comes first where `echo` was asked for.
        token_ids: the answer's tokens, without the stop token; those of a stop string are included.
        finish_reason: "stop" or "length".
        matched_stop: the stop string or the stop token that ended it, None where `max_tokens` did.
        logprobs: one per token where `top_logprobs` was set, else None.
        prompt_logprobs: one per prompt token where asked for, None for the first one; else None.
        usage: tokens counted.
        timings: where the time went.
    """

    prompt_token_ids: list[int]
    index: int
    text: str
    token_ids: list[int]
    finish_reason: str
    matched_stop: str | int | None
    logprobs: list[TokenLogprobs] | None
    prompt_logprobs: list[TokenLogprobs | None] | None
    usage: Usage
    timings: Timings


@dataclass(frozen=True, slots=True)
class Delta:
    """What was added to an answer; all of them together are the `Completion`.

    Attributes:
        text: whole characters, nothing that may turn out to be a stop string; may be empty.
        token_ids: new tokens; may be empty.
        logprobs: one per token where `top_logprobs` was set, else None.
        completion: the whole answer, with the last delta only.
    """

    text: str
    token_ids: list[int]
    logprobs: list[TokenLogprobs] | None = None
    completion: Completion | None = None


@dataclass(frozen=True, slots=True)
class Embedding:
    """What came of one input.

    Attributes:
        values: [hidden_size] float32.
        token_ids: the input as the model saw it.
        usage: tokens counted.
    """

    values: Float32
    token_ids: list[int]
    usage: Usage
