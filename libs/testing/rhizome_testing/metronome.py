"""When the requests of a `metronome_engine` get which tokens."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol

MARKER = "W"
"""Every token's text holds this letter once, so tokens can be counted in whatever carries the text."""

_SPACE = "\N{LATIN CAPITAL LETTER G WITH DOT ABOVE}"  # how byte-level vocabularies write a space
_KINDS = ("rate", "saturate", "idle", "instant")


@dataclass(frozen=True, slots=True)
class Pace:
    """When open requests get tokens.

    Attributes:
        kind: `rate`: one token each per tick, all in one frame; `saturate`: one token each per frame, and a
            frame for every credit; `idle`: none ever; `instant`: all that was asked for, at once.
        tokens_per_s: of each request, for `rate`.
    """

    kind: str
    tokens_per_s: float = 50.0

    @classmethod
    def parse(cls, text: str) -> Pace:
        """Read `saturate` or `rate 50`.

        Raises:
            ValueError: it is no pace.
        """
        kind, _, number = text.partition(" ")
        if kind not in _KINDS or (number and kind != "rate"):
            raise ValueError(f"a pace is one of {', '.join(_KINDS)}, and `rate` takes tokens per second")
        pace = cls(kind, float(number)) if number else cls(kind)
        if pace.tokens_per_s <= 0:
            raise ValueError("tokens per second must be positive")
        return pace


@dataclass(slots=True)
class Counts:
    """What happened since the start.

    Attributes:
        open: requests that run now.
        received: requests that began.
        completed: requests that got all their tokens, or whose caller had enough.
        aborted: requests that were cancelled or lost with their connection.
        tokens: tokens given out.
    """

    open: int = 0
    received: int = 0
    completed: int = 0
    aborted: int = 0
    tokens: int = 0

    def begin(self) -> None:
        """A request came."""
        self.open += 1
        self.received += 1

    def end(self, *, completed: bool) -> None:
        """A request is over."""
        self.open -= 1
        self.completed += completed
        self.aborted += not completed


def marked_words(tokenizer_json: bytes) -> list[int]:
    """Ids of tokens whose text is a word with one `MARKER`.

    Raises:
        ValueError: the vocabulary has none.
    """
    vocabulary: Mapping[str, int] = json.loads(tokenizer_json)["model"]["vocab"]
    found = sorted(
        token_id
        for token, token_id in vocabulary.items()
        if token.count(MARKER) == 1 and token.removeprefix(_SPACE).isascii() and token.isalpha()
    )
    if not found:
        raise ValueError(f"no token of this vocabulary is a word with one {MARKER!r}; use another tokenizer")
    return found


class Ticking(Protocol):
    """Who hears every tick."""

    def tick(self) -> None:
        """Every open request gets a token."""
        ...


class Metronome:
    """Gives tokens to the requests of all peers.

    Args:
        words: token ids; every request gets them in turn.
        pace: when; may be changed while nothing is open.

    Attributes:
        counts: what happened.
        peers: who hears ticks.
    """

    def __init__(self, words: Sequence[int], pace: Pace) -> None:
        self.words = words
        self.pace = pace
        self.counts = Counts()
        self.peers: set[Ticking] = set()
        self._ticked = asyncio.Event()

    def word(self, tick: int) -> int:
        """The token of a tick."""
        return self.words[tick % len(self.words)]

    async def beat(self) -> None:
        """Tick for ever. A tick that comes late is not made up for."""
        loop = asyncio.get_running_loop()
        due = loop.time()
        while True:
            due = max(due + 1 / self.pace.tokens_per_s, loop.time())
            await asyncio.sleep(due - loop.time())
            if self.pace.kind == "rate":
                self.tick()

    def tick(self) -> None:
        """Give every open request its next token."""
        for peer in tuple(self.peers):
            peer.tick()
        self._ticked.set()
        self._ticked = asyncio.Event()

    async def turn(self) -> None:
        """Wait until a request that is no peer's may have its next token."""
        if self.pace.kind == "rate":
            await self._ticked.wait()
        elif self.pace.kind == "saturate":
            await asyncio.sleep(0)
        elif self.pace.kind == "idle":
            await asyncio.Event().wait()
