"""What a request must satisfy before it may wait: whatever would make it fail later is refused here."""

from __future__ import annotations

from dataclasses import dataclass

import grpc
import numpy as np

from rhizome_engine.scheduler.request import Request
from rhizome_transport.errors import EngineError


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
        if prompt_tokens >= self.max_context_tokens:
            raise InvalidRequestError(self._too_long(prompt_tokens), "prompt", "CONTEXT_LENGTH_EXCEEDED")
        self._check_ids(request.prompt_ids, "prompt")
        self._check_ids(request.stop_token_ids, "stop.token_ids")
        self._check_ids(tuple(request.params.logit_bias), "logit_bias")
        room = self.max_context_tokens - prompt_tokens
        low, high = request.min_tokens, request.max_tokens
        if high is not None and high < 1:
            raise InvalidRequestError(f"max_tokens must be at least 1, not {high}", "max_tokens")
        if low < 0:
            raise InvalidRequestError(f"min_tokens must not be negative, not {low}", "min_tokens")
        if high is not None and low > high:
            raise InvalidRequestError(f"min_tokens ({low}) must not exceed max_tokens ({high})", "min_tokens")
        stop_ids = frozenset(request.stop_token_ids)
        if not request.ignore_eos:
            stop_ids |= self.eos_token_ids
        request.admit(min(room, high or room), stop_ids, now, unix_ns)

    def _check_ids(self, token_ids: list[int] | tuple[int, ...], param: str) -> None:
        if not token_ids:
            return
        ids = np.asarray(token_ids, np.int64)
        wrong = ids[(ids < 0) | (ids >= self.vocab_size)]
        if len(wrong):
            raise InvalidRequestError(
                f"{param} has token id {wrong[0]}, but the vocabulary has ids 0 to {self.vocab_size - 1}",
                param,
            )

    def _too_long(self, prompt_tokens: int) -> str:
        bounds = [f"model {self.model_tokens}"]
        if self.configured_tokens is not None:
            bounds.append(f"configured {self.configured_tokens}")
        bounds.append(
            f"KV pool {self.num_pages} pages x {self.page_size} = {self.num_pages * self.page_size}"
        )
        return (
            f"the prompt has {prompt_tokens} tokens, and at least one more has to fit for the answer, but "
            f"the context window is {self.max_context_tokens} tokens (the least of: {', '.join(bounds)}); "
            "shorten the prompt"
        )
