"""What happens to one answer (a choice), whatever API shows it.

Engines produce tokens; `choice.Choice` turns them into these events, and each API's writer turns the events
into its own chunks. An event does not say which choice it belongs to: that travels beside it.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from rhizome.common.v1.common_pb2 import Timings
from rhizome.engine.v1.generate_pb2 import TokenLogprob

TokenLogprobs = Sequence[tuple[int, TokenLogprob]]
"""Id and log probability of tokens, in order."""


@dataclass(frozen=True, slots=True)
class Begun:
    """The engine took the request and computes its prompt."""

    prompt_tokens: int = 0
    cached_tokens: int = 0


@dataclass(frozen=True, slots=True)
class PromptScored:
    """How likely the prompt was: one entry for each prompt token from the second on.

    May come in several pieces, before any text.
    """

    logprobs: Sequence[TokenLogprob]


@dataclass(slots=True)  # one for every token: a frozen one takes three times as long to make
class Text:
    """Text of the answer that is safe to show, and the tokens generated since the last event that had any.

    Attributes:
        text: whole characters; may be empty where there are only log probabilities or token ids.
        logprobs: where they were asked for.
    """

    text: str
    logprobs: TokenLogprobs = ()


@dataclass(frozen=True, slots=True)
class Reasoning:
    """Text of the model's thinking, which is not part of the answer; fields as in `Text`."""

    text: str
    logprobs: TokenLogprobs = ()


@dataclass(frozen=True, slots=True)
class CallBegun:
    """The model calls a tool; its arguments follow.

    Attributes:
        call: 0 for the first call of this answer, and so on.
        id: made up here; a client sends it back with the tool's result.
        name: the tool.
    """

    call: int
    id: str
    name: str


@dataclass(frozen=True, slots=True)
class CallArguments:
    """More of the arguments of a call: all pieces joined are a JSON object, as the model wrote it."""

    call: int
    text: str


@dataclass(frozen=True, slots=True)
class Ended:
    """The answer is complete; nothing follows.

    Attributes:
        reason: `stop`, `length` or `tool_calls`.
        prompt_tokens: tokens of the prompt.
        cached_tokens: those of them that came from the prefix cache.
        completion_tokens: tokens of the answer, up to the stop string where one ended it.
        reasoning_tokens: those of them that were thinking.
        timings: where the engine spent the time.
        stop: the stop string that ended it, where one did.
    """

    reason: str
    prompt_tokens: int
    cached_tokens: int
    completion_tokens: int
    reasoning_tokens: int
    timings: Timings
    stop: str | None = None


Event = Begun | PromptScored | Text | Reasoning | CallBegun | CallArguments | Ended
ParsedEvent = Text | Reasoning | CallBegun | CallArguments
"""What an output parser makes of text; its `Text` and `Reasoning` have no log probabilities."""
