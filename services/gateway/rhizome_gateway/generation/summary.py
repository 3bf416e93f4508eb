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
    _pieces: list[str] = field(default_factory=list)

    @property
    def arguments(self) -> str:
        """What the model wrote; joined once, as an answer may come in a hundred thousand pieces."""
        return "".join(self._pieces)

    def add(self, text: str) -> None:
        """Take more of the arguments."""
        self._pieces.append(text)


@dataclass(slots=True)
class CollectedText:
    """Text of a whole answer without a call in it, or thinking; log probabilities as in `Text`."""

    thinking: bool
    logprobs: list[tuple[int, TokenLogprob]] = field(default_factory=list)
    _pieces: list[str] = field(default_factory=list)

    @property
    def text(self) -> str:
        """All of it."""
        return "".join(self._pieces)

    def add(self, event: Text | Reasoning) -> None:
        """Take more."""
        self._pieces.append(event.text)
        self.logprobs += event.logprobs


@dataclass(slots=True)
class Answer:
    """One choice of a whole response.

    Attributes:
        parts: text, thinking and tool calls, in the order in which they came.
        ended: how it ended; `None` while it has not.
    """

    parts: list[CollectedText | CollectedCall] = field(default_factory=list)
    ended: Ended | None = None

    @property
    def text(self) -> str:
        """The answer."""
        return "".join([part.text for part in self._texts if not part.thinking])

    @property
    def reasoning(self) -> str:
        """The thinking before it."""
        return "".join([part.text for part in self._texts if part.thinking])

    @property
    def calls(self) -> list[CollectedCall]:
        """Tool calls."""
        return [part for part in self.parts if isinstance(part, CollectedCall)]

    @property
    def logprobs(self) -> list[tuple[int, TokenLogprob]]:
        """Of all tokens, where they were asked for."""
        return [entry for part in self._texts for entry in part.logprobs]

    @property
    def text_logprobs(self) -> list[tuple[int, TokenLogprob]]:
        """The same without those of the thinking."""
        return [entry for part in self._texts if not part.thinking for entry in part.logprobs]

    @property
    def finish_reason(self) -> str:
        """How it ended."""
        return "" if self.ended is None else self.ended.reason

    def add(self, event: Event) -> None:
        """Take the next event."""
        match event:
            case Text() | Reasoning():
                if event.text or event.logprobs:
                    self._text_for(event).add(event)
            case CallBegun():
                self.parts.append(CollectedCall(event.id, event.name))
            case CallArguments():
                self.calls[event.call].add(event.text)
            case Ended():
                self.ended = event
            case Begun() | PromptScored():
                pass

    @property
    def _texts(self) -> list[CollectedText]:
        return [part for part in self.parts if isinstance(part, CollectedText)]

    def _text_for(self, event: Text | Reasoning) -> CollectedText:
        thinking = isinstance(event, Reasoning)
        last = self.parts[-1] if self.parts else None
        if isinstance(last, CollectedText) and last.thinking == thinking:
            return last
        part = CollectedText(thinking)
        self.parts.append(part)
        return part


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
        if len(self.ended) == 1:
            return [*self.ended.values()]
        first: dict[int, Ended] = {}
        for index, ended in self.ended.items():
            first.setdefault(index // self._choices_per_prompt, ended)
        return list(first.values())

    @property
    def prompt_tokens(self) -> int:
        """Over all prompts."""
        return sum([ended.prompt_tokens for ended in self._first_of_prompts])

    @property
    def cached_tokens(self) -> int:
        """Prompt tokens that came from the prefix cache."""
        return sum([ended.cached_tokens for ended in self._first_of_prompts])

    @property
    def completion_tokens(self) -> int:
        """Over all choices."""
        return sum([ended.completion_tokens for ended in self.ended.values()])

    @property
    def reasoning_tokens(self) -> int:
        """Completion tokens that were thinking."""
        return sum([ended.reasoning_tokens for ended in self.ended.values()])

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
        decode_ms = max([_ms(times.decode_time) for times in timings])
        first_ms = max([_ms(times.time_to_first_token) for times in timings])
        tokens = self.completion_tokens
        later = tokens - len(timings)
        if later > 0 and decode_ms > 0:
            rate = later / decode_ms * 1000
        else:
            rate = tokens / first_ms * 1000 if first_ms > 0 else 0.0
        return {
            "queue_time_ms": max([_ms(times.queue_time) for times in timings]),
            "prefill_time_ms": max([_ms(times.prefill_time) for times in timings]),
            "decode_time_ms": decode_ms,
            "time_to_first_token_ms": first_ms,
            "tokens_per_second": round(rate, 3),
        }


def _ms(duration: Duration) -> float:
    return round(duration.seconds * 1e3 + duration.nanos / 1e6, 3)
