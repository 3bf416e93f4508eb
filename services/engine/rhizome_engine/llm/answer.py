"""Collects what the core tells about one request of the library."""

from __future__ import annotations

from typing import Protocol

from rhizome_engine.batch import Float32, TokenLogprobs
from rhizome_engine.core.events import (
    EmbeddingEvent,
    Event,
    FinishedEvent,
    PromptLogprobsEvent,
    TokensEvent,
)
from rhizome_engine.llm.outputs import Completion, Delta, Embedding
from rhizome_engine.scheduler.request import FinishReason, Request
from rhizome_text.text_stream import TextStream


class Answer(Protocol):
    """One request on its way to its result."""

    request: Request

    @property
    def found_stop(self) -> bool:
        """Whether a stop string ended it: the request is to be cancelled, since the core knows no text."""

    def take(self, event: Event) -> Delta | None:
        """Note an event; what it adds, where there is anything to see."""


class TextAnswer:
    """Tokens become text; the first stop string ends it.

    Args:
        request: what the core was asked.
        index: which of the prompt's answers it is.
        stream: where its text is made.
        shown_prompt: comes before the text.

    Attributes:
        request: the same.
        found_stop: whether a stop string was found.
        completion: the whole answer, once it is there.
    """

    def __init__(self, request: Request, index: int, stream: TextStream, shown_prompt: str) -> None:
        self.request = request
        self.found_stop = False
        self.completion: Completion | None = None
        self._index = index
        self._stream = stream
        self._shown_prompt = shown_prompt
        self._pieces: list[str] = []
        self._token_ids: list[int] = []
        self._logprobs: list[TokenLogprobs] | None = None
        self._matched: str | int | None = None
        self._prompt_logprobs: list[TokenLogprobs | None] | None = None
        if request.prompt_logprobs is not None:
            self._prompt_logprobs = [None]

    def take(self, event: Event) -> Delta | None:
        """Note an event; what it adds to the answer."""
        match event:
            case TokensEvent() if not self.found_stop:
                return self._take_tokens(event)
            case PromptLogprobsEvent():
                assert self._prompt_logprobs is not None
                self._prompt_logprobs += event.logprobs
            case FinishedEvent():
                return self._finish(event)
        return None

    def _take_tokens(self, event: TokensEvent) -> Delta:
        chunk = self._stream.push(event.token_ids)
        self._matched = chunk.matched_stop
        self.found_stop = self._matched is not None
        token_ids = event.token_ids[: chunk.num_tokens]
        self._token_ids += token_ids
        logprobs = None if event.logprobs is None else event.logprobs[: chunk.num_tokens]
        if logprobs is not None:
            self._logprobs = [*(self._logprobs or ()), *logprobs]
        return Delta(self._say(chunk.text), token_ids, logprobs)

    def _finish(self, event: FinishedEvent) -> Delta:
        text = ""
        if self._matched is None:
            rest = self._stream.finish()
            text = rest.text
            self._matched = rest.matched_stop or event.stop_token_id
        text = self._say(text)
        stopped = self._matched is not None or event.reason is FinishReason.STOP
        self.completion = Completion(
            prompt_token_ids=self.request.prompt_ids.tolist(),
            index=self._index,
            text="".join(self._pieces),
            token_ids=self._token_ids,
            finish_reason=(FinishReason.STOP if stopped else FinishReason.LENGTH).value,
            matched_stop=self._matched,
            logprobs=self._logprobs,
            prompt_logprobs=self._prompt_logprobs,
            usage=event.usage,
            timings=event.timings,
        )
        return Delta(text, [], None, self.completion)

    def _say(self, text: str) -> str:
        text, self._shown_prompt = self._shown_prompt + text, ""
        self._pieces.append(text)
        return text


class VectorAnswer:
    """A vector.

    Attributes:
        request: what the core was asked.
        found_stop: never, there is no text.
        embedding: the result, once it is there.
    """

    found_stop = False

    def __init__(self, request: Request) -> None:
        self.request = request
        self.embedding: Embedding | None = None
        self._values: Float32 | None = None

    def take(self, event: Event) -> Delta | None:
        """Note an event; there is nothing to see before the end."""
        match event:
            case EmbeddingEvent():
                self._values = event.values
            case FinishedEvent():
                assert self._values is not None
                self.embedding = Embedding(self._values, self.request.prompt_ids.tolist(), event.usage)
        return None
