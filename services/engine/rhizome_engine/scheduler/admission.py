"""What a request must satisfy before it may wait: whatever would make it fail later is refused here."""

from __future__ import annotations

from dataclasses import dataclass

import grpc
import numpy as np
from numpy.typing import ArrayLike

from rhizome_engine.scheduler.request import Request
from rhizome_transport.errors import EngineError

MAX_PROMPT_LOGPROBS = 128
"""Rivals beside each prompt token: the vocabulary is searched for them at every position."""


class QueueFullError(EngineError):
    """The queue is at its bound; trying again later helps."""

    def __init__(self, waiting: int, retry_after_s: float) -> None:
        super().__init__(
            grpc.StatusCode.RESOURCE_EXHAUSTED,
            f"the engine is busy: {waiting} requests wait already; try again later",
            reason="QUEUE_FULL",
            retry_after_s=retry_after_s,
        )


class InvalidRequestError(EngineError):
    """The request cannot be served as it is; trying again does not help."""

    def __init__(self, message: str, param: str, reason: str = "") -> None:
        super().__init__(grpc.StatusCode.INVALID_ARGUMENT, message, reason=reason, param=param)

    def of_input(self, index: int) -> InvalidRequestError:
        """The same error, about one of several inputs."""
        return InvalidRequestError(f"inputs[{index}]: {self.message}", f"inputs[{index}]", self.reason)


@dataclass(frozen=True, slots=True)
class Limits:
    """What the model and the pool can hold.

    Attributes:
        vocab_size: token ids are below this.
        model_tokens: the context window of the model.
        configured_tokens: the operator's limit, None for none.
        num_pages: pages of the KV pool.
        page_size: tokens per page.
        eos_token_ids: where generation ends.
    """

    vocab_size: int
    model_tokens: int
    configured_tokens: int | None
    num_pages: int
    page_size: int
    eos_token_ids: frozenset[int]

    @property
    def max_context_tokens(self) -> int:
        """Most tokens of prompt and output together that one request can have."""
        return min(
            self.model_tokens,
            self.configured_tokens or self.model_tokens,
            self.num_pages * self.page_size,
        )

    def admit(self, request: Request, now: float, unix_ns: int) -> None:
        """Check a request and fix its output length.

        Raises:
            InvalidRequestError: it can never be served; the message says why, with the arithmetic.
        """
        prompt_tokens = len(request.prompt_ids)
        if not prompt_tokens:
            raise InvalidRequestError("the prompt is empty; it needs at least one token", "prompt")
        needed = prompt_tokens if request.max_tokens == 0 else prompt_tokens + 1
        if needed > self.max_context_tokens:
            text = self._too_long(prompt_tokens, wants_output=request.max_tokens != 0)
            raise InvalidRequestError(text, "prompt", "CONTEXT_LENGTH_EXCEEDED")
        self._check_ids(request.prompt_ids, "prompt")
        self._check_ids(request.stop_token_ids, "stop.token_ids")
        self._check_ids(tuple(request.params.logit_bias), "logit_bias")
        self._check_ids(request.params.allowed_token_ids or (), "allowed_token_ids")
        for words in request.params.bad_words:
            self._check_ids(words, "bad_words")
        _check_lengths(request)
        room = self.max_context_tokens - request.num_prompt
        stop_ids = frozenset(request.stop_token_ids)
        # A grammar that is complete has nothing else to say than end-of-sequence.
        if not request.ignore_eos or request.grammar is not None:
            stop_ids |= self.eos_token_ids
        high = room if request.max_tokens is None else request.max_tokens
        request.admit(min(room, high), stop_ids, now, unix_ns)

    def _check_ids(self, token_ids: ArrayLike, param: str) -> None:
        ids = np.asarray(token_ids, np.int64)
        wrong = ids[(ids < 0) | (ids >= self.vocab_size)]
        if len(wrong):
            raise InvalidRequestError(
                f"{param} has token id {wrong[0]}, but the vocabulary has ids 0 to {self.vocab_size - 1}",
                param,
            )

    def _too_long(self, prompt_tokens: int, *, wants_output: bool) -> str:
        bounds = [f"model {self.model_tokens}"]
        if self.configured_tokens is not None:
            bounds.append(f"configured {self.configured_tokens}")
        bounds.append(
            f"KV pool {self.num_pages} pages x {self.page_size} = {self.num_pages * self.page_size}"
        )
        one_more = ", and at least one more has to fit for the answer" if wants_output else ""
        return (
            f"the prompt has {prompt_tokens} tokens{one_more}, but "
            f"the context window is {self.max_context_tokens} tokens (the least of: {', '.join(bounds)}); "
            "shorten the prompt"
        )


def _check_lengths(request: Request) -> None:
    low, high, resumed = request.min_tokens, request.max_tokens, request.resumed_tokens
    if low < 0:
        raise InvalidRequestError(f"min_tokens must not be negative, not {low}", "min_tokens")
    if high is not None and high < 0:
        raise InvalidRequestError(f"max_tokens must not be negative, not {high}", "max_tokens")
    if high is not None and low > high:
        raise InvalidRequestError(f"min_tokens ({low}) must not exceed max_tokens ({high})", "min_tokens")
    if not 0 <= resumed < len(request.prompt_ids):
        raise InvalidRequestError(
            f"resumed_tokens must be less than the {len(request.prompt_ids)} tokens given, not {resumed}",
            "resumed_tokens",
        )
    if resumed and high is not None and resumed >= high:
        raise InvalidRequestError(
            f"{resumed} tokens were generated before, and max_tokens is {high}: nothing is left to generate",
            "resumed_tokens",
        )
    if request.prompt_logprobs is not None and not 0 <= request.prompt_logprobs <= MAX_PROMPT_LOGPROBS:
        raise InvalidRequestError(
            f"prompt_logprobs must be in [0, {MAX_PROMPT_LOGPROBS}], not {request.prompt_logprobs}",
            "prompt_logprobs",
        )
