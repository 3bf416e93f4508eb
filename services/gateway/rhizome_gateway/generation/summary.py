"""What an answer was and what it cost, whatever API shows it."""

from __future__ import annotations

from dataclasses import dataclass, field

from google.protobuf.duration_pb2 import Duration

from rhizome.engine.v1.generate_pb2 import TokenLogprob
from rhizome_gateway.generation.events import (
    Begun,
    CallArguments,
    CallBegun,
    Ended,
    Event,
    PromptScored,
    Reasoning,
    Text,
)


@dataclass(slots=True)
class CollectedCall:
    """A tool call of a whole answer."""

    id: str
    name: str
    arguments: str = ""


@dataclass(slots=True)
class CollectedText:
    """Text of a whole answer without a call in it, or thinking; log probabilities as in `Text`."""

    text: str
    thinking: bool
    logprobs: list[tuple[int, TokenLogprob]] = field(default_factory=list)


@dataclass(slots=True)
class Answer:
    """One choice of a whole response.

    Attributes:
        text: the answer.
        reasoning: the thinking before it.
        calls: tool calls.
        parts: text, thinking and calls once more, in the order in which they came.
        logprobs: of the answer's tokens, where they were asked for.
        prompt_logprobs: of the prompt's tokens from the second on, where they were asked for.
        ended: how it ended; `None` while it has not.
    """

    text: str = ""
    reasoning: str = ""
    calls: list[CollectedCall] = field(default_factory=list)
    parts: list[CollectedText | CollectedCall] = field(default_factory=list)
    logprobs: list[tuple[int, TokenLogprob]] = field(default_factory=list)
    prompt_logprobs: list[TokenLogprob] = field(default_factory=list)
    ended: Ended | None = None

    @property
    def finish_reason(self) -> str:
        """How it ended."""
        return "" if self.ended is None else self.ended.reason

    def add(self, event: Event) -> None:
        """Take the next event."""
        match event:
            case Text():
                self.text += event.text
                self._add_text(event, thinking=False)
                self.logprobs += event.logprobs
            case Reasoning():
                self.reasoning += event.text
                self._add_text(event, thinking=True)
                self.logprobs += event.logprobs
            case CallBegun():
                self.calls.append(CollectedCall(event.id, event.name))
                self.parts.append(self.calls[-1])
            case CallArguments():
                self.calls[event.call].arguments += event.text
            case PromptScored():
                self.prompt_logprobs += event.logprobs
            case Ended():
                self.ended = event
            case Begun():
                pass

    def _add_text(self, event: Text | Reasoning, *, thinking: bool) -> None:
        last = self.parts[-1] if self.parts else None
        if isinstance(last, CollectedText) and last.thinking == thinking:
            last.text += event.text
            last.logprobs += event.logprobs
        elif event.text or event.logprobs:
            self.parts.append(CollectedText(event.text, thinking, list(event.logprobs)))


class Summary:
    """What all choices of a request cost, added up as they end.

    Args:
        choices_per_prompt: so many choices in a row share a prompt, whose tokens count once.
    """

    def __init__(self, choices_per_prompt: int = 1) -> None:
        self._choices_per_prompt = choices_per_prompt
        self.ended: dict[int, Ended] = {}

    def add(self, index: int, ended: Ended) -> None:
        """Count one choice."""
        self.ended[index] = ended

    @property
    def _first_of_prompts(self) -> list[Ended]:
        """For each prompt the choice that ended first; what it says of the cache is what the prompt found."""
        first: dict[int, Ended] = {}
        for index, ended in self.ended.items():
            first.setdefault(index // self._choices_per_prompt, ended)
        return list(first.values())

    @property
    def prompt_tokens(self) -> int:
        """Over all prompts."""
        return sum(ended.prompt_tokens for ended in self._first_of_prompts)

    @property
    def cached_tokens(self) -> int:
        """Prompt tokens that came from the prefix cache."""
        return sum(ended.cached_tokens for ended in self._first_of_prompts)

    @property
    def completion_tokens(self) -> int:
        """Over all choices."""
        return sum(ended.completion_tokens for ended in self.ended.values())

    @property
    def reasoning_tokens(self) -> int:
        """Completion tokens that were thinking."""
        return sum(ended.reasoning_tokens for ended in self.ended.values())

    @property
    def finish_reasons(self) -> list[str]:
        """By choice."""
        return [ended.reason for _, ended in sorted(self.ended.items())]

    @property
    def performance(self) -> dict[str, float]:
        """Where the time went, in milliseconds, as the engine measured it; several choices: the slowest.

        `tokens_per_second` counts the tokens after the first over the time they took; with only one token,
        that token over the time until it came.
        """
        timings = [ended.timings for ended in self.ended.values()]
        decode_ms = max(_ms(times.decode_time) for times in timings)
        first_ms = max(_ms(times.time_to_first_token) for times in timings)
        tokens = self.completion_tokens
        later = tokens - len(timings)
        if later > 0 and decode_ms > 0:
            rate = later / decode_ms * 1000
        else:
            rate = tokens / first_ms * 1000 if first_ms > 0 else 0.0
        return {
            "queue_time_ms": max(_ms(times.queue_time) for times in timings),
            "prefill_time_ms": max(_ms(times.prefill_time) for times in timings),
            "decode_time_ms": decode_ms,
            "time_to_first_token_ms": first_ms,
            "tokens_per_second": round(rate, 3),
        }


def _ms(duration: Duration) -> float:
    return round(duration.seconds * 1e3 + duration.nanos / 1e6, 3)
