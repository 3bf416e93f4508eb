"""A request inside a simulated engine."""

from __future__ import annotations

import zlib
from dataclasses import dataclass, field
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from rhizome_transport.block_hashes import block_hashes

TOKEN_BYTES = 4
"""Four bytes are a token: of a text, or a token id as a little-endian number."""


class Sink(Protocol):
    """Who hears what comes of a request."""

    def started(self, request: SimulatedRequest) -> None:
        """It left the queue."""
        ...

    def token(self, index: int) -> None:
        """It has another token, by its number in the engine's vocabulary."""
        ...

    def finished(self, request: SimulatedRequest) -> None:
        """It has all its tokens."""
        ...

    def flush(self) -> None:
        """The step is over: what was heard can be sent at once."""
        ...


@dataclass(eq=False, slots=True)
class SimulatedRequest:
    """What to generate and how far it is.

    Attributes:
        sink: who hears of it.
        content: prompt and output, `TOKEN_BYTES` a token. The next token depends on these bytes and the seed
            only, so what another engine began can be continued anywhere.
        max_tokens: tokens of the output.
        seed: of the output.
        namespace: cached prefixes are shared only within one.
        tenant: whose it is, where the engine is fair to tenants.
        generated: tokens of the output that there are; more than 0 at the start where it is resumed.
        prompt_tokens: tokens of the prompt.
        computed: tokens in the KV cache.
        cached: prompt tokens found there at the start.
        state: CRC-32 of the content, from which the next token follows.
        shared: hashes of the full blocks that it holds.
        private: blocks that it holds beside them.
        over: finished or cancelled.
        arrived_s: when, in simulated seconds.
        started_s: when it first left the queue.
        first_token_s: when the first token came.
        ended_s: when the last one came.
    """

    sink: Sink
    content: bytearray
    max_tokens: int
    seed: int = 0
    namespace: str = ""
    generated: int = 0
    tenant: str = ""
    prompt_tokens: int = field(init=False)
    computed: int = 0
    cached: int = 0
    state: int = field(init=False)
    shared: list[int] = field(default_factory=list)
    private: int = 0
    over: bool = False
    arrived_s: float = 0.0
    started_s: float | None = None
    first_token_s: float | None = None
    ended_s: float | None = None

    def __post_init__(self) -> None:
        self.prompt_tokens = max(1, -(-len(self.content) // TOKEN_BYTES) - self.generated)
        self.state = zlib.crc32(self.content, self.seed & 0xFFFFFFFF)

    @property
    def tokens(self) -> int:
        """Tokens of prompt and output."""
        return self.prompt_tokens + self.generated

    def token_ids(self) -> NDArray[np.uint32]:
        """The full tokens as numbers."""
        whole = len(self.content) // TOKEN_BYTES * TOKEN_BYTES
        return np.frombuffer(bytes(self.content[:whole]), "<u4")

    def hashes(self, block_size: int) -> list[int]:
        """Chained hashes of the full blocks."""
        hashed: list[int] = block_hashes(self.token_ids(), block_size, self.namespace).tolist()
        return hashed


def words() -> tuple[bytes, ...]:
    """The vocabulary of text: 1,280 words of three letters behind a space, each one token long."""
    first, middle, last = "bdfghjklmnprstvw", "aeiou", "bdgklmnprstvxyzc"
    return tuple(f" {a}{e}{z}".encode() for a in first for e in middle for z in last)
