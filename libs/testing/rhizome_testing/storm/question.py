"""What is asked, and the words that answer it."""

from __future__ import annotations

import random
from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Final

PROMPTS: Final = 24
"""Different prompts; few enough to learn all answers first, enough that every server gets some."""

_SEEDS: Final = (None, 11, 12)
_SHARED_WORDS: Final = 40
_OWN_WORDS: Final = 24


@dataclass(frozen=True, slots=True)
class Question:
    """A request whose answer depends on nothing but itself.

    Attributes:
        prompt: its number.
        seed: of sampling; `None` for greedy.
        chat: whether it goes to the chat route; over gRPC there is none.
        stream: whether the answer comes as events; over gRPC it always does.
        max_tokens: length of the answer.
    """

    prompt: int
    seed: int | None
    chat: bool
    stream: bool
    max_tokens: int

    @property
    def text(self) -> str:
        """The prompt as text; four characters are a token."""
        shared = "".join(f" w{number % 4}{number % 10}" for number in range(_SHARED_WORDS))
        return shared + "".join(
            f" {self.prompt % 10}{self.prompt // 10 % 10}{n % 10}" for n in range(_OWN_WORDS)
        )

    @property
    def token_ids(self) -> list[int]:
        """The prompt as token ids."""
        return [*range(100, 100 + _SHARED_WORDS), *[200 + self.prompt] * _OWN_WORDS]

    @property
    def topic(self) -> Question:
        """The same for all questions with the same answer, however long it may be."""
        return replace(self, stream=True, max_tokens=0)


def topics(*, chat: bool) -> Iterator[Question]:
    """All questions with different answers.

    Args:
        chat: those for the chat route, too.
    """
    for route in (False, True) if chat else (False,):
        for prompt in range(PROMPTS):
            for seed in _SEEDS:
                yield Question(prompt, seed, route, stream=True, max_tokens=0)


def draw(dice: random.Random, least: int, most: int, *, chat: bool, whole: float = 0.0) -> Question:
    """A question by chance.

    Args:
        dice: gives it.
        least: tokens of the answer, at least.
        most: and at most.
        chat: for the chat route, half of the times.
        whole: share of answers that come in one piece.
    """
    return Question(
        prompt=dice.randrange(PROMPTS),
        seed=dice.choice(_SEEDS),
        chat=chat and dice.random() < 0.5,
        stream=dice.random() >= whole,
        max_tokens=dice.randint(least, most),
    )
