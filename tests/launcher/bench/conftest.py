"""An OpenAI-compatible server that misbehaves on demand."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass, field
from typing import Any

import pytest_asyncio
from aiohttp import web
from aiohttp.test_utils import TestServer

TEMPLATE_TOKENS = 7
TOKENS_PER_WORD = 2


@dataclass
class Behaviour:
    """What the server does with a request; the defaults are a good server.

    Attributes:
        status: answered instead of a stream, unless it is 200.
        pieces: texts of the stream.
        first_s: silence before the first piece.
        after: what has to happen before the first piece, None for nothing.
        gap_s: silence between pieces.
        usage: report token counts.
        finish: send the finish reason, the usage and `[DONE]`.
        error_after: an error event after so many pieces, None for never.
        cut_after: the connection breaks after so many pieces, None for never.
        garbage: send this instead of a stream.
    """

    status: int = 200
    pieces: list[str] = field(default_factory=lambda: ["a", " b", " c"])
    first_s: float = 0.0
    after: asyncio.Event | None = None
    gap_s: float = 0.0
    usage: bool = True
    finish: bool = True
    error_after: int | None = None
    cut_after: int | None = None
    garbage: bytes = b""


@dataclass
class PuppetServer:
    """A running server.

    Attributes:
        url: its address, without `/v1`.
        bodies: the requests, decoded, in the order in which they came.
        behave: chooses what to do with the n-th request, from 0.
        open, most_open: requests being answered now, and the most that ever were.
    """

    url: str = ""
    bodies: list[dict[str, Any]] = field(default_factory=list)
    behave: Callable[[int], Behaviour] = lambda index: Behaviour()
    open: int = 0
    most_open: int = 0

    async def models(self, request: web.Request) -> web.Response:
        return web.json_response({"object": "list", "data": [{"id": "puppet", "object": "model"}]})

    async def answer(self, request: web.Request) -> web.StreamResponse:
        body = await request.json()
        behaviour = self.behave(len(self.bodies))
        self.bodies.append(body)
        self.open += 1
        self.most_open = max(self.most_open, self.open)
        try:
            return await self._answer(request, body, behaviour)
        finally:
            self.open -= 1

    async def _answer(
        self, request: web.Request, body: dict[str, Any], behaviour: Behaviour
    ) -> web.StreamResponse:
        if behaviour.status != 200:
            return web.json_response({"error": {"message": "no [such] luck"}}, status=behaviour.status)
        response = web.StreamResponse(headers={"content-type": "text/event-stream"})
        await response.prepare(request)
        chat = "messages" in body

        async def send(event: dict[str, Any]) -> None:
            await response.write(b"data: " + json.dumps(event).encode() + b"\n\n")

        def choice(text: str, reason: str | None = None) -> dict[str, Any]:
            content = {"delta": {"content": text}} if chat else {"text": text}
            return {"choices": [{"index": 0, **content, "finish_reason": reason}]}

        if behaviour.garbage:
            await response.write(behaviour.garbage)
            return response
        await send(choice(""))
        await asyncio.sleep(behaviour.first_s)
        if behaviour.after is not None:
            await behaviour.after.wait()
        for place, piece in enumerate(behaviour.pieces):
            if place == behaviour.cut_after:
                assert request.transport is not None
                request.transport.abort()
                return response
            if place == behaviour.error_after:
                await send({"error": {"message": "the model broke"}})
            if place:
                await asyncio.sleep(behaviour.gap_s)
            await response.write(b": a comment\n\n")
            await send(choice(piece))
        if behaviour.finish:
            await send(choice("", "length"))
            if behaviour.usage:
                await send({"choices": [], "usage": self._usage(body, behaviour)})
            await response.write(b"data: [DONE]\n\n")
        return response

    def _usage(self, body: dict[str, Any], behaviour: Behaviour) -> dict[str, Any]:
        texts = [m["content"] for m in body["messages"]] if "messages" in body else [body["prompt"]]
        words = sum(len(text.split()) for text in texts)
        return {
            "prompt_tokens": TEMPLATE_TOKENS + TOKENS_PER_WORD * words,
            # Two tokens a piece: servers put several into one.
            "completion_tokens": 2 * len(behaviour.pieces),
            "prompt_tokens_details": {"cached_tokens": 1},
        }


async def eventually(condition: Callable[[], bool], timeout_s: float = 30) -> None:
    """Wait until something is true."""
    async with asyncio.timeout(timeout_s):
        while not condition():  # noqa: ASYNC110
            await asyncio.sleep(0.005)


@pytest_asyncio.fixture
async def puppet() -> AsyncIterator[PuppetServer]:
    server = PuppetServer()
    app = web.Application()
    app.router.add_get("/v1/models", server.models)
    app.router.add_post("/v1/chat/completions", server.answer)
    app.router.add_post("/v1/completions", server.answer)
    async with TestServer(app, handler_cancellation=True) as running:
        server.url = str(running.make_url("")).rstrip("/")
        yield server
