"""A simulated server that speaks HTTP."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Final, TypeAlias

from rhizome_launcher.simulate.engine import Engine, TooLargeError
from rhizome_launcher.simulate.faults import Cut, Faults
from rhizome_launcher.simulate.heart import Heart
from rhizome_launcher.simulate.http.administration import Administration
from rhizome_launcher.simulate.http.answers import Form, StreamAnswer, WholeAnswer
from rhizome_launcher.simulate.http.completion import BadRequestError, Completion, read_completion
from rhizome_launcher.simulate.http.connection import Answer, Connection, HttpRequest
from rhizome_launcher.simulate.physics import Physics
from rhizome_launcher.simulate.request import SimulatedRequest, words

_BACKLOG: Final = 1024

Route: TypeAlias = "Callable[[HttpServer, HttpRequest], Answer]"


@dataclass(frozen=True, slots=True)
class Flavour:
    """What tells one server from another.

    Attributes:
        owned_by: in /v1/models; empty stands for the model's name.
        routes: what it answers beside completions, by path.
        health: paths that say whether it lives.
        metrics: paths that a server without metrics lacks.
        early_headers: whether a stream's headers come before its first token.
        continues_assistant: a conversation that ends with the assistant's words is continued.
        timings: whether answers end with llama.cpp's timings.
        model_details: more about the model in /v1/models.
    """

    owned_by: str
    routes: Mapping[str, Route]
    health: frozenset[str] = frozenset({"/health"})
    metrics: frozenset[str] = frozenset({"/metrics"})
    early_headers: bool = True
    continues_assistant: bool = False
    timings: bool = False
    model_details: Callable[[HttpServer], dict[str, Any]] = lambda server: {}


class HttpServer:
    """Serves one port. Must be made inside the running loop.

    Args:
        flavour: whose surface.
        physics: how fast.
        model: served name.
        speed: simulated seconds per second.
        context_tokens: most tokens of prompt and output together.
        default_max_tokens: after so many the model has said all, where a request sets no limit.
        watched: keep the KV cache's changes, for `after_beat` to publish.

    Attributes:
        engine: what computes.
        faults: what is wrong.
        administration: changes that.
        port: once started.
        started_at: Unix time.
        after_beat: called after each wake-up.
    """

    def __init__(
        self,
        flavour: Flavour,
        physics: Physics,
        *,
        model: str = "simulated",
        speed: float = 1.0,
        context_tokens: int = 131_072,
        default_max_tokens: int = 128,
        watched: bool = False,
    ) -> None:
        self.engine = Engine(physics, words(), watched=watched)
        self.after_beat: Callable[[], None] = lambda: None
        self.heart = Heart(self.engine, speed, lambda: self.after_beat())
        self.model = model
        self.context_tokens = context_tokens
        self.faults = Faults()
        self.administration = Administration(self.engine, self.heart, self.faults, refuse=self._refuse)
        self.port = 0
        self.started_at = time.time()
        self._flavour = flavour
        self._default_max_tokens = default_max_tokens
        self._connections: set[Connection] = set()
        self._listener: asyncio.Server | None = None
        self._address = ("127.0.0.1", 0)

    async def start(self, host: str = "127.0.0.1", port: int = 0) -> None:
        """Listen.

        Raises:
            OSError: the port is taken.
        """
        self._listener = await asyncio.get_running_loop().create_server(
            lambda: Connection(self._serve, self._connections), host, port, backlog=_BACKLOG
        )
        self.port = self._listener.sockets[0].getsockname()[1]
        self._address = (host, self.port)

    def stop(self) -> None:
        """End everything, as a server that is killed would."""
        if self._listener is not None:
            self._listener.close()
        for connection in tuple(self._connections):
            connection.abort()
        self.heart.stop()

    def _serve(self, connection: Connection, request: HttpRequest) -> None:
        path, faults, flavour = request.path, self.faults, self._flavour
        if path in ("/v1/chat/completions", "/v1/completions"):
            self._complete(connection, request)
        elif path == "/simulate":
            connection.respond(self.administration.answer(request))
        elif path == "/v1/models":
            connection.respond(self._models())
        elif path in flavour.health and faults.unhealthy:
            connection.respond(Answer.error(503, "the simulated server is unhealthy", "unavailable"))
        elif path in flavour.routes and not (path in flavour.metrics and faults.metrics_missing):
            connection.respond(flavour.routes[path](self, request))
        else:
            connection.respond(Answer.error(404, "this server has no such route", "not_found"))

    def _complete(self, connection: Connection, request: HttpRequest) -> None:
        if request.method != "POST":
            connection.respond(Answer.error(405, "this route takes POST"))
            return
        try:
            wanted = read_completion(
                request.body,
                model=self.model,
                block_size=self.engine.physics.block_size,
                chat=request.path == "/v1/chat/completions",
                continues_assistant=self._flavour.continues_assistant,
            )
        except LookupError:
            connection.respond(Answer.error(404, "the model does not exist; see /v1/models", "not_found"))
            return
        except BadRequestError as error:
            connection.respond(Answer.error(400, str(error)))
            return
        fault = self.faults.take()
        cut = None if fault is None else fault.cut
        if fault is not None and fault.status:
            connection.respond(Answer.error(fault.status, "the simulated server fails", "server_error"))
            return
        if cut is not None and cut.after_tokens == 0:
            connection.cut(cut)
            return
        if fault is not None and fault.slow_loris:
            connection.slow_down()
        self._generate(connection, request, wanted, cut)

    def _generate(
        self, connection: Connection, request: HttpRequest, wanted: Completion, cut: Cut | None
    ) -> None:
        engine, flavour = self.engine, self._flavour
        limit, reason = wanted.max_tokens, "length"
        if limit is None:
            limit, reason = self._default_max_tokens, "stop"
        form = Form(wanted.chat, self.model, engine.vocabulary, flavour.timings, reason)
        answer: StreamAnswer | WholeAnswer
        if wanted.stream:
            answer = StreamAnswer(connection, form, cut, request.chunked, wanted.include_usage)
        else:
            answer = WholeAnswer(connection, form, cut)
        simulated = SimulatedRequest(answer, wanted.content, limit, wanted.seed, wanted.namespace)
        try:
            if simulated.tokens + limit > self.context_tokens:
                raise TooLargeError(
                    f"prompt and output together may have {self.context_tokens} tokens at most; "
                    "send a shorter prompt or ask for fewer tokens"
                )
            self.heart.submit(simulated)
        except TooLargeError as error:
            connection.respond(Answer.error(400, str(error)))
            return
        connection.when_lost = lambda: engine.cancel(simulated)
        if flavour.early_headers:
            answer.flush()

    def _models(self) -> Answer:
        entry = {
            "id": self.model,
            "object": "model",
            "created": int(self.started_at),
            "owned_by": self._flavour.owned_by or self.model,
            **self._flavour.model_details(self),
        }
        return Answer.json({"object": "list", "data": [entry]})

    def _refuse(self, seconds: float) -> None:
        if self._listener is not None:
            self._listener.close()
            self._listener = None
            asyncio.get_running_loop().call_later(seconds, self._let_in)

    def _let_in(self) -> None:
        self._opening = asyncio.ensure_future(self.start(*self._address))
