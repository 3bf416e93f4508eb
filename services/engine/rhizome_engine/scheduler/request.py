"""One request as the scheduler sees it."""

from __future__ import annotations

import math
import secrets
from collections.abc import Hashable, Sequence
from dataclasses import dataclass
from enum import Enum, auto
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from rhizome_engine.embedding.pooling import EmbeddingParams
from rhizome_engine.kvcache.node import TokenIds
from rhizome_engine.kvcache.sequence_pages import SequencePages
from rhizome_engine.sampling.params import SamplingParams

if TYPE_CHECKING:
    from rhizome_grammar.matcher import GrammarMatcher
    from rhizome_grammar.spec import Grammar


class RequestState(Enum):
    """Where a request is. Preemption leads from RUNNING back to WAITING; FINISHED is final.

    PREPARING is before the queue: the request's grammar is being compiled, or others of its call go first.
    """

    PREPARING = auto()
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
    """Tokens counted, and what was saved or lost.

    Attributes:
        prompt_tokens: in the prompt, cached or not.
        completion_tokens: generated, a stop token included, and those that an earlier engine generated.
        cached_tokens: prompt tokens found in the prefix cache when the request was first admitted.
        preemptions: times the request had to give its pages back.
        forced_tokens: generated tokens that a grammar dictated, so that they needed no forward pass each.
    """

    prompt_tokens: int
    completion_tokens: int
    cached_tokens: int
    preemptions: int = 0
    forced_tokens: int = 0


@dataclass(frozen=True, slots=True)
class Timings:
    """Where the time went, in seconds; a phase that was never reached counts 0.

    Attributes:
        queue_s: from arrival until first scheduled.
        prefill_s: from first scheduled until the first token, or until the end where none was wanted.
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
        prompt_ids: [n] token ids of the prompt.
        params: how tokens are chosen.
        peer: who asked; opaque, handed back with each event.
        max_tokens: most tokens to generate; None fills the context window, 0 only computes the prompt.
        min_tokens: end-of-sequence and stop tokens are not chosen before this many.
        stop_token_ids: end here, beside the checkpoint's end-of-sequence tokens.
        ignore_eos: do not end at the checkpoint's end-of-sequence tokens.
        namespace: whose cached prefixes it may use.
        tenant: whose share of the engine it uses; empty for the namespace.
        priority: higher goes first, where the policy knows priorities.
        deadline: on the engine core's clock (`time.monotonic`); None for no limit.
        trace: opaque, for whoever makes spans.
        grammar: what the output must conform to.
        prompt_logprobs: how many rivals to report beside the log probability of each prompt token; None for
            no report.
        resumed_tokens: so many tokens at the end of `prompt_ids` are output that an earlier engine generated.
        embedding: a vector is wanted, and no tokens.

    Attributes:
        state: where it is.
        num_prompt: tokens of the prompt without resumed output.
        token_ids: [num_tokens] int32, all known tokens; a view.
        num_tokens: known tokens of prompt and output.
        num_computed: tokens whose keys and values are known to be in `pages`.
        scored: prompt tokens whose log probabilities were reported, the first one included, which has none.
        slot: its place in the scheduler's table, -1 unless running.
        pages: None unless running.
        matcher: where the grammar stands, None without one.
    """

    def __init__(
        self,
        request_id: str,
        prompt_ids: ArrayLike,
        params: SamplingParams | None = None,
        *,
        peer: Hashable = None,
        max_tokens: int | None = None,
        min_tokens: int = 0,
        stop_token_ids: Sequence[int] = (),
        ignore_eos: bool = False,
        namespace: str = "",
        tenant: str = "",
        priority: int = 0,
        deadline: float | None = None,
        trace: Any = None,
        grammar: Grammar | None = None,
        prompt_logprobs: int | None = None,
        resumed_tokens: int = 0,
        embedding: EmbeddingParams | None = None,
    ) -> None:
        self.request_id = request_id
        self.prompt_ids: NDArray[np.signedinteger[Any]] = np.array(prompt_ids, np.int64)
        if self.prompt_ids.ndim != 1:
            raise ValueError(f"a prompt is one list of token ids, not of shape {self.prompt_ids.shape}")
        self.params = params or SamplingParams()
        self.peer = peer
        self.max_tokens = max_tokens if embedding is None else 0
        self.min_tokens = min_tokens
        self.stop_token_ids = tuple(stop_token_ids)
        self.ignore_eos = ignore_eos
        self.namespace = namespace
        self.tenant = tenant or namespace
        self.priority = priority
        self.deadline = math.inf if deadline is None else deadline
        self.trace = trace
        self.grammar = grammar
        self.prompt_logprobs = prompt_logprobs
        self.resumed_tokens = resumed_tokens
        self.embedding = embedding
        self.seed = secrets.randbits(63) if self.params.seed is None else self.params.seed

        self.state = RequestState.WAITING
        self.num_prompt = len(self.prompt_ids) - resumed_tokens
        self.num_tokens = len(self.prompt_ids)
        self.num_computed = 0
        self.scored = 1
        self.cached_tokens = 0
        self.preemptions = 0
        self.forced_tokens = 0
        self.slot = -1
        self.pages: SequencePages | None = None
        self.matcher: GrammarMatcher | None = None
        self.max_output = 0
        self.stop_ids: frozenset[int] = frozenset()
        self.arrival_order = 0
        self.tenant_number = 0
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
    def output_ids(self) -> list[int]:
        """Tokens generated so far, a stop token and resumed ones included; a copy."""
        return [int(token) for token in self._tokens[self.num_prompt : self.num_tokens]]

    @property
    def max_total_tokens(self) -> int:
        """Most tokens of prompt and output together."""
        return self.num_prompt + self.max_output

    @property
    def reads_cache(self) -> bool:
        """Whether cached keys and values will do for its prompt.

        They will not where the hidden states are wanted: for a vector of all tokens, or for log probabilities
        that were not reported yet.
        """
        wants_scores = self.prompt_logprobs is not None and self.scored < self.num_prompt
        return not wants_scores and self.fills_cache

    @property
    def fills_cache(self) -> bool:
        """Whether others may find its prompt in the cache.

        What is embedded whole is not looked for again: it would only push out what is.
        """
        return self.embedding is None or not self.embedding.pooling.needs_every_token

    def admit(self, max_output: int, stop_ids: frozenset[int], now: float, unix_ns: int) -> None:
        """Fix what follows from the engine's limits once they were checked."""
        self.max_output = max_output
        self.stop_ids = stop_ids
        self.arrival = now
        self.arrival_unix_ns = unix_ns
        self._tokens = np.empty(self.max_total_tokens, np.int32)
        self._tokens[: self.num_tokens] = self.prompt_ids
        self.prompt_ids = self._tokens[: self.num_tokens]

    def append(self, token_id: int, now: float) -> None:
        """Note a generated token."""
        self._tokens[self.num_tokens] = token_id
        self.num_tokens += 1
        if self.first_token is None:
            self.first_token = now
        self.last_token = now

    def usage(self) -> Usage:
        """Tokens counted so far."""
        return Usage(
            prompt_tokens=self.num_prompt,
            completion_tokens=self.num_tokens - self.num_prompt,
            cached_tokens=self.cached_tokens,
            preemptions=self.preemptions,
            forced_tokens=self.forced_tokens,
        )

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
