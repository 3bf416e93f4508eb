"""What is asked: random words of a wanted length, or prompts from a file."""

from __future__ import annotations

import random
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import orjson

from rhizome_launcher.bench.errors import BenchError

Content = str | list[dict[str, Any]]
"""Text, or a conversation as OpenAI messages."""

_TEXT = (
    "the of and to in is it you that he was for on are with as his they be at one have this from or "
    "had by not but some what there we can out other were all your when up use word how said an each "
    "she which do their time if will way about many then them would like so these her long make "
    "thing see him two has look"
)
WORDS = tuple(_TEXT.split())
"""Common short words: most vocabularies have a token for each, so that lengths vary little."""


@dataclass(frozen=True, slots=True)
class Prompt:
    """One request's content.

    Attributes:
        content: text or messages.
        max_tokens: the longest answer; None for the benchmark's own setting.
    """

    content: Content
    max_tokens: int | None = None


class Workload(Protocol):
    """An endless supply of prompts."""

    def next(self) -> Prompt:
        """The next prompt."""


@dataclass(frozen=True, slots=True)
class TokenRate:
    """How a server's tokens relate to words: tokens = fixed + per_word * words.

    Attributes:
        per_word: tokens of one of `WORDS`, on average.
        fixed: tokens that the chat template and special tokens add to any prompt.
        measured: False where the server reports no usage and the numbers are a guess.
    """

    per_word: float
    fixed: float
    measured: bool = True


class RandomWords:
    """Prompts of random words, about `input_tokens` long, that share their first `shared_tokens` tokens.

    No two prompts begin alike after the shared part, so that a prefix cache can help with nothing else.

    Args:
        rate: tokens per word on this server.
        input_tokens: of a whole prompt with what the chat template adds.
        shared_tokens: how many of them all prompts have in common, at their start.
        chance: source of randomness.
    """

    def __init__(
        self, rate: TokenRate, *, input_tokens: int, shared_tokens: int, chance: random.Random
    ) -> None:
        num_words = max(1, round((input_tokens - rate.fixed) / rate.per_word))
        num_shared = min(round(shared_tokens / rate.per_word), num_words - 1)
        self._chance = chance
        self._shared = chance.choices(WORDS, k=num_shared)
        self._num_own = num_words - num_shared

    def next(self) -> Prompt:
        """Draw a prompt."""
        return Prompt(" ".join([*self._shared, *self._chance.choices(WORDS, k=self._num_own)]))


class PromptFile:
    """Prompts of a JSONL file in the order of its lines, from the start again after the last.

    A line is `{"messages": [...]}`, `{"prompt": "..."}` or a JSON string; `max_tokens` beside them limits the
    answer; a line of an OpenAI batch file has them in its `body`.

    Raises:
        BenchError: on reading, where the file or a line cannot be used.
    """

    def __init__(self, path: Path) -> None:
        try:
            lines = path.read_bytes().splitlines()
        except OSError as error:
            raise BenchError(f"the data set {path} cannot be read: {error.strerror}.") from None
        self._prompts = [
            _prompt_of(line, f"{path}, line {number}") for number, line in enumerate(lines, 1) if line.strip()
        ]
        if not self._prompts:
            raise BenchError(f"the data set {path} holds no prompts.")
        self._next = 0

    def __len__(self) -> int:
        """How many different prompts there are."""
        return len(self._prompts)

    def next(self) -> Prompt:
        """The next line's prompt."""
        prompt = self._prompts[self._next % len(self._prompts)]
        self._next += 1
        return prompt


def _prompt_of(line: bytes, place: str) -> Prompt:
    try:
        value = orjson.loads(line)
    except orjson.JSONDecodeError as error:
        raise BenchError(f"{place} is not JSON: {error}.") from None
    if isinstance(value, str):
        return Prompt(value)
    if isinstance(value, dict):
        fields = value["body"] if isinstance(value.get("body"), dict) else value
        content = fields.get("messages") or fields.get("prompt")
        limit = fields.get("max_tokens") or fields.get("max_completion_tokens")
        if isinstance(content, str | list) and isinstance(limit, int | None):
            return Prompt(content, limit)
    raise BenchError(f'{place} has neither "messages" nor "prompt".')
