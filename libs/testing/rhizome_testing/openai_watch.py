"""Checks every answer of the OpenAI API that a test's HTTP clients receive, whatever else the test looks at.

The watch sits in the transports of httpx and httpx2, below every client built on them: the SDKs, LangChain
and plain requests. It reads along and never changes what the client gets. Raw sockets pass it by.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import ExitStack, contextmanager
from typing import Any
from unittest.mock import patch

import httpx
import httpx2
import pytest
from openai.types import Model
from openai.types.chat import ChatCompletion
from openai.types.responses import Response
from openai.types.responses.input_token_count_response import InputTokenCountResponse
from pydantic import BaseModel

from rhizome_testing.strict_openai import Embeddings, ErrorEnvelope, ModelList, TextCompletion, problems_of
from rhizome_testing.strict_openai_stream import (
    chat_stream_problems,
    completion_stream_problems,
    response_stream_problems,
)

_OBJECTS: dict[tuple[str, str], type[BaseModel]] = {
    ("POST", "/v1/chat/completions"): ChatCompletion,
    ("POST", "/v1/completions"): TextCompletion,
    ("POST", "/v1/embeddings"): Embeddings,
    ("POST", "/v1/responses"): Response,
    ("POST", "/v1/responses/input_tokens"): InputTokenCountResponse,
    ("GET", "/v1/models"): ModelList,
}
_STREAMS: dict[str, Callable[..., list[str]]] = {
    "/v1/chat/completions": chat_stream_problems,
    "/v1/completions": completion_stream_problems,
    "/v1/responses": response_stream_problems,
}
_OTHER_ENVELOPES = ("/v1/messages", "/health", "/ready")
"""Anthropic's API has errors of its own, and probes answer with a status."""


class OpenAIWatch:
    """What was seen.

    Attributes:
        problems: what was wrong, one line for each thing.
        num_checked: how many answers were checked.
    """

    def __init__(self) -> None:
        self.problems: list[str] = []
        self.num_checked = 0

    def saw(self, call: Call, body: bytes, *, complete: bool) -> None:
        """Check one answer, as far as the client read it."""
        found = _problems(call, body, complete)
        if found is not None:
            self.num_checked += 1
            self.problems += [f"{call.method} {call.path} {call.status}: {problem}" for problem in found]


class Call:
    """Method, path, status and headers of one exchange."""

    def __init__(self, request: httpx.Request | httpx2.Request, response: httpx.Response | httpx2.Response):
        self.method = request.method
        self.path = request.url.path
        self.status = response.status_code
        self.content_type = response.headers.get("content-type", "")
        self.encoding = response.headers.get("content-encoding", "identity")
        self.from_gateway = "x-request-id" in response.headers
        self.speaks_anthropic = "anthropic-version" in request.headers


def _problems(call: Call, body: bytes, complete: bool) -> list[str] | None:
    """What is wrong; None for what is no concern of OpenAI's API."""
    if call.path.startswith(_OTHER_ENVELOPES) or call.method == "HEAD":
        return None
    if call.path.startswith("/v1/models") and call.speaks_anthropic:  # a path that both APIs have
        return None
    if not call.from_gateway:
        # Other servers of the tests have no such paths.
        return ["x-request-id is missing"] if call.path in _STREAMS else None
    if call.encoding != "identity":
        return [f"the body is encoded: {call.encoding}"]
    if call.status >= 400:
        return problems_of(ErrorEnvelope, body) if complete else None
    if call.content_type.startswith("text/event-stream"):
        check = _STREAMS.get(call.path)
        return ["there is no stream at this address"] if check is None else check(body, complete=complete)
    model = _OBJECTS.get((call.method, call.path))
    if model is None and call.path.startswith("/v1/models/"):
        model = Model
    if model is None or not complete:
        return None
    if call.content_type != "application/json":
        return [f"the body is {call.content_type!r}, not application/json"]
    return problems_of(model, body)


class _Tap:
    """Reads a body along; it may end early, when the client closes it."""

    def __init__(self, watch: OpenAIWatch, call: Call, stream: Any) -> None:
        self._watch = watch
        self._call = call
        self._stream = stream
        self._body = bytearray()
        self._checked = False

    def _check(self, *, complete: bool) -> None:
        if not self._checked:
            self._checked = True
            self._watch.saw(self._call, bytes(self._body), complete=complete)

    def __iter__(self) -> Iterator[bytes]:
        for part in self._stream:
            self._body += part
            yield part
        self._check(complete=True)

    async def __aiter__(self) -> AsyncIterator[bytes]:
        async for part in self._stream:
            self._body += part
            yield part
        self._check(complete=True)

    def close(self) -> None:
        self._stream.close()
        self._check(complete=False)

    async def aclose(self) -> None:
        await self._stream.aclose()
        self._check(complete=False)


@contextmanager
def watching_openai() -> Iterator[OpenAIWatch]:
    """Watch all HTTP clients of this process within the block."""
    watch = OpenAIWatch()
    with ExitStack() as patches:
        for module in (httpx, httpx2):
            patches.enter_context(_watched(watch, module))
        yield watch


@contextmanager
def _watched(watch: OpenAIWatch, module: Any) -> Iterator[None]:
    send = module.HTTPTransport.handle_request
    send_async = module.AsyncHTTPTransport.handle_async_request

    class Tap(_Tap, module.SyncByteStream, module.AsyncByteStream):  # type: ignore[misc]
        """httpx looks for its own stream types."""

    def handle_request(self: Any, request: Any) -> Any:
        response = send(self, request)
        response.stream = Tap(watch, Call(request, response), response.stream)
        return response

    async def handle_async_request(self: Any, request: Any) -> Any:
        response = await send_async(self, request)
        response.stream = Tap(watch, Call(request, response), response.stream)
        return response

    with (
        patch.object(module.HTTPTransport, "handle_request", handle_request),
        patch.object(module.AsyncHTTPTransport, "handle_async_request", handle_async_request),
    ):
        yield


@pytest.fixture(autouse=True)
def every_answer_is_openais() -> Iterator[None]:
    """Fails the test whose clients got something that OpenAI would not send; a conftest imports it."""
    with watching_openai() as watch:
        yield
    assert not watch.problems, "\n".join(watch.problems[:20])
