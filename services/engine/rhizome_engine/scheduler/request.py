"""One request as the scheduler sees it."""

from __future__ import annotations

import math
import secrets
from collections.abc import Hashable, Sequence
from dataclasses import dataclass
from enum import Enum, auto
from typing import Any

import numpy as np

from rhizome_engine.kvcache.node import TokenIds
from rhizome_engine.kvcache.sequence_pages import SequencePages
from rhizome_engine.sampling.params import SamplingParams


class RequestState(Enum):
    """Where a request is. Preemption leads from RUNNING back to WAITING; FINISHED is final."""

    WAITING = auto()
    RUNNING = auto()
    FINISHED = auto()


class FinishReason(Enum):
    """Why a request ended well; one that failed has an error instead."""

    STOP = "stop"
    LENGTH = "length"
    CANCELLED = "cancelled"


@dataclass(frozen=True, slots=True)
class Usage:
    """Tokens counted.

    Attributes:
        prompt_tokens: in the prompt, cached or not.
        completion_tokens: generated, a stop token included.
        cached_tokens: prompt tokens found in the prefix cache when the request was first admitted.
    """

    prompt_tokens: int
    completion_tokens: int
    cached_tokens: int


@dataclass(frozen=True, slots=True)
class Timings:
    """Where the time went, in seconds; a phase that was never reached counts 0.

    Attributes:
        queue_s: from arrival until first scheduled.
        prefill_s: from first scheduled until the first token.
        decode_s: from the first token until the last.
        time_to_first_token_s: from arrival until the first token.
    """

    queue_s: float
    prefill_s: float
    decode_s: float
    time_to_first_token_s: float


class Request:
    """What is asked, what came out so far, and when things happened.

    Args:
        request_id: unique among the open requests of one peer.
        prompt_ids: token ids of the prompt.
        params: how tokens are chosen.
        peer: who asked; opaque, handed back with each event.
        max_tokens: most tokens to generate; None fills the context window.
        min_tokens: end-of-sequence and stop tokens are not chosen before this many.
        stop_token_ids: end here, beside the checkpoint's end-of-sequence tokens.
        ignore_eos: do not end at the checkpoint's end-of-sequence tokens.
        namespace: whose cached prefixes it may use.
        priority: for policies that know priorities.
        deadline: on the engine core's clock (`time.monotonic`); None for no limit.
        trace: opaque, for whoever makes spans.

    Attributes:
        state: where it is.
        token_ids: [prompt + output] int32, all known tokens; a view.
        num_tokens: known tokens.
        num_computed: tokens whose keys and values are in `pages`.
        output_ids: generated tokens, a stop token included.
        pages: None unless running.
    """

    def __init__(
        self,
        request_id: str,
        prompt_ids: Sequence[int],
        params: SamplingParams | None = None,
        *,
        peer: Hashable = None,
        max_tokens: int | None = None,
        min_tokens: int = 0,
        stop_token_ids: Sequence[int] = (),
        ignore_eos: bool = False,
        namespace: str = "",
        priority: int = 0,
        deadline: float | None = None,
        trace: Any = None,
    ) -> None:
        self.request_id = request_id
        self.prompt_ids = list(prompt_ids)
        self.params = params or SamplingParams()
        self.peer = peer
        self.max_tokens = max_tokens
        self.min_tokens = min_tokens
        self.stop_token_ids = tuple(stop_token_ids)
        self.ignore_eos = ignore_eos
        self.namespace = namespace
        self.priority = priority
        self.deadline = math.inf if deadline is None else deadline
        self.trace = trace
        self.seed = secrets.randbits(63) if self.params.seed is None else self.params.seed

        self.state = RequestState.WAITING
        self.output_ids: list[int] = []
        self.num_tokens = len(self.prompt_ids)
        self.num_computed = 0
        self.cached_tokens = 0
        self.pages: SequencePages | None = None
        self.max_output = 0
        self.stop_ids: frozenset[int] = frozenset()
        self._tokens = np.empty(0, np.int32)

        self.arrival = 0.0
        self.arrival_unix_ns = 0
        self.first_scheduled: float | None = None
        self.first_token: float | None = None
        self.last_token: float | None = None

    @property
    def key(self) -> tuple[Hashable, str]:
        """What names an open request in the core."""
        return self.peer, self.request_id

    @property
    def token_ids(self) -> TokenIds:
        """All known tokens."""
        return self._tokens[: self.num_tokens]

    @property
    def computed_ids(self) -> TokenIds:
        """Tokens whose keys and values are written."""
        return self._tokens[: self.num_computed]

    @property
    def max_total_tokens(self) -> int:
        """Most tokens of prompt and output together."""
        return len(self.prompt_ids) + self.max_output

    @property
    def banned_ids(self) -> tuple[int, ...]:
        """Tokens that must not be chosen now."""
        return tuple(self.stop_ids) if len(self.output_ids) < self.min_tokens else ()

    def admit(self, max_output: int, stop_ids: frozenset[int], now: float, unix_ns: int) -> None:
        """Fix what follows from the engine's limits once they were checked."""
        self.max_output = max_output
        self.stop_ids = stop_ids
        self.arrival = now
        self.arrival_unix_ns = unix_ns
        self._tokens = np.empty(self.max_total_tokens, np.int32)
        self._tokens[: self.num_tokens] = self.prompt_ids

    def append(self, token_id: int, now: float) -> None:
        """Note a generated token."""
        self._tokens[self.num_tokens] = token_id
        self.num_tokens += 1
        self.output_ids.append(token_id)
        if self.first_token is None:
            self.first_token = now
        self.last_token = now

    def usage(self) -> Usage:
        """Tokens counted so far."""
        return Usage(len(self.prompt_ids), len(self.output_ids), self.cached_tokens)

    def timings(self, now: float) -> Timings:
        """Where the time went; `now` ends the phase that is still open when there is one."""
        scheduled = now if self.first_scheduled is None else self.first_scheduled
        first = self.first_token
        return Timings(
            queue_s=scheduled - self.arrival,
            prefill_s=(now if first is None else first) - scheduled,
            decode_s=0.0 if first is None or self.last_token is None else self.last_token - first,
            time_to_first_token_s=0.0 if first is None else first - self.arrival,
        )
