"""What the gateway knows about the engine behind it: is there one, what does it serve, with which tokenizer.

The gateway may start before any engine. A task asks again and again, quickly until there is an answer, and
slowly afterwards, so that a restarted engine with another model is noticed too.

Several workers find out one after another, and one that was started again later still. Clients see one
gateway: whom one worker told that it is ready, another must not send away. So the first that knows the model
leaves a file; where that is, a worker that does not know it yet lets requests wait until it does.
"""

from __future__ import annotations

import asyncio
import logging
import time
from contextlib import suppress
from functools import partial
from pathlib import Path

import grpc

from rhizome.engine.v1.engine_service_pb2 import GetModelInfoResponse
from rhizome_gateway.errors import INVALID, ApiError
from rhizome_gateway.model_aliases import ModelAliases
from rhizome_gateway.parsing.detect import AUTO
from rhizome_gateway.served_model import ServedModel, TextModel
from rhizome_transport.client import EngineClient
from rhizome_transport.errors import EngineError

_log = logging.getLogger(__name__)

_RETRY_S = 0.25
_ANSWER_TIMEOUT_S = 5.0
_CATCH_UP_S = 10.0
"""What a worker may take to know what another one knows: it connects, and reads a tokenizer."""
_TEXTS_KEPT = 2


class EngineSession:
    """Keeps the served model up to date.

    Args:
        client: an engine or a proxy; closed with the session.
        refresh_s: how often to ask while all is well.
        aliases: other names of what is served.
        tool_parser: how tool calls are written; `auto` asks the checkpoint.
        reasoning_parser: the same for thinking.
        seen: file that is there once one of several workers knows the model; `None` for a lone process.

    Attributes:
        model_since: when the model was first seen, in seconds since the epoch.
    """

    def __init__(
        self,
        client: EngineClient,
        *,
        refresh_s: float = 5.0,
        aliases: ModelAliases | None = None,
        tool_parser: str = AUTO,
        reasoning_parser: str = AUTO,
        seen: Path | None = None,
    ) -> None:
        self.client = client
        self._seen = seen
        self._known = asyncio.Event()
        self._refresh_s = refresh_s
        self._aliases = aliases or ModelAliases()
        self._model: ServedModel | None = None
        self.model_since = 0
        self._answered = False
        self._problem: EngineError | None = None
        self._read_text = partial(
            TextModel.from_files, tool_parser=tool_parser, reasoning_parser=reasoning_parser
        )
        self._texts: dict[str, TextModel] = {}
        self._refreshing = asyncio.Lock()
        self._task: asyncio.Task[None] | None = None

    @property
    def ready(self) -> bool:
        """Whether the engine answered the last time it was asked."""
        return self._answered and self._model is not None

    @property
    def known_model(self) -> ServedModel | None:
        """The model last seen, also while its engine is away."""
        return self._model

    def start(self) -> None:
        """Begin to ask."""
        self._task = asyncio.create_task(self._keep_fresh(), name="engine session")

    async def close(self) -> None:
        """Stop asking and release the connection."""
        if self._task is not None:
            self._task.cancel()
            with suppress(asyncio.CancelledError):
                await self._task
        if self._model is not None:
            self._model.grammars.close()
        await self.client.close()

    async def catch_up(self) -> None:
        """Wait for the model where another worker knows it already; not for ever, and `model` raises then."""
        if self._known.is_set() or self._seen is None or not self._seen.exists():
            return
        with suppress(TimeoutError):
            async with asyncio.timeout(_CATCH_UP_S):
                await self._known.wait()

    def model(self, name: str) -> ServedModel:
        """The model a client asked for, by its name or an alias.

        Raises:
            ApiError: 404 when another model is served, 503 while none is.
        """
        served = self._model
        if served is None:
            raise self.unavailable()
        if not self._aliases.means(name, served.info.model):
            raise ApiError(
                404,
                f"This model does not exist here; the model served is '{served.info.model}'. "
                "See GET /v1/models.",
                kind=INVALID,
                code="model_not_found",
                param="model",
            )
        return served

    def model_names(self) -> list[str]:
        """What clients may ask for: the served name, then its aliases.

        Raises:
            ApiError: 503 while none is served.
        """
        if self._model is None:
            raise self.unavailable()
        return self._aliases.names(self._model.info.model)

    def unavailable(self) -> ApiError:
        """The error while no engine answers."""
        loading = self._problem is not None and self._problem.reason == "MODEL_LOADING"
        text = "The model is still being loaded." if loading else "No engine is ready to answer."
        return ApiError(
            503,
            f"{text} Try again in a moment.",
            kind="server_error",
            code="model_loading" if loading else "engine_unavailable",
            headers={"Retry-After": "1"},
        )

    async def refresh(self) -> bool:
        """Ask now; whether there was an answer."""
        async with self._refreshing:
            try:
                async with asyncio.timeout(_ANSWER_TIMEOUT_S):
                    info = await self.client.model_info()
                text = await self._text(info)
            except Exception as error:  # a checkpoint's files may be broken in any way
                self._note_problem(error)
                return False
            # Replicas behind a proxy differ in these, and answer in turn.
            info.ClearField("instance_id")
            info.ClearField("start_time")
            if self._model is None or info != self._model.info:
                if self._model is None or info.model != self._model.info.model:
                    _log.info("serving %s (%s)", info.model, info.architecture)
                self._model = ServedModel(info, text)
                self.model_since = int(time.time())
                self._tell_others()
            elif not self._answered:
                _log.info("the engine answers again")
            self._answered, self._problem = True, None
            return True

    def _tell_others(self) -> None:
        self._known.set()
        if self._seen is not None:
            with suppress(OSError):  # a full disk: others will refuse what they could answer in a moment
                self._seen.touch()

    async def _text(self, info: GetModelInfoResponse) -> TextModel:
        known = self._texts.get(info.tokenizer_sha256)
        if known is not None:
            return known
        started = time.monotonic()
        files = await self.client.tokenizer_files(info.model)
        if files.sha256 != info.tokenizer_sha256:
            raise ValueError("the engine handed out another tokenizer than it announced; asking again")
        text = await asyncio.to_thread(self._read_text, files.files)
        _log.info("tokenizer %s fetched in %.2f s", files.sha256[:12], time.monotonic() - started)
        while len(self._texts) >= _TEXTS_KEPT:
            del self._texts[next(iter(self._texts))]
        self._texts[files.sha256] = text
        return text

    def _note_problem(self, error: Exception) -> None:
        if isinstance(error, TimeoutError):
            error = EngineError(
                grpc.StatusCode.DEADLINE_EXCEEDED, f"no answer within {_ANSWER_TIMEOUT_S:g} s"
            )
        if isinstance(error, EngineError):
            problem = error
        else:  # the tokenizer's files are unusable
            text = f"{error}" if isinstance(error, ValueError) else f"{type(error).__name__}: {error}"
            problem = EngineError(grpc.StatusCode.INTERNAL, text)
        if self._answered or self._problem is None or self._problem.message != problem.message:
            unexpected = not isinstance(error, EngineError | ValueError)
            _log.warning("no engine is ready: %s", problem.message, exc_info=error if unexpected else None)
        self._answered, self._problem = False, problem

    async def _keep_fresh(self) -> None:
        while True:
            await self.refresh()
            # An engine that is away may be there in a moment; a broken tokenizer stays broken for a while.
            away = self._problem is not None and self._problem.code != grpc.StatusCode.INTERNAL
            await asyncio.sleep(_RETRY_S if away else self._refresh_s)
