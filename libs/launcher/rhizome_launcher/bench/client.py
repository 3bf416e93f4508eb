"""Requests to an OpenAI-compatible server, at little cost: the server shares this machine."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Mapping
from typing import Any

import orjson

from rhizome_launcher.bench.answer import StreamedAnswer, shown
from rhizome_launcher.bench.connection import BadResponseError, Piece
from rhizome_launcher.bench.errors import BenchError
from rhizome_launcher.bench.origin import Origin, RefusedError
from rhizome_launcher.bench.records import RequestRecord

PATHS = {"chat": "/chat/completions", "completions": "/completions"}


class OpenAIClient:
    """A client of one server; an async context manager.

    Args:
        base_url: with or without `/v1` at its end.
        endpoint: `chat` or `completions`.
        api_key: sent as a bearer token; empty for none.
        timeout_s: for a whole answer.

    Raises:
        BenchError: the address or the key cannot be used.
    """

    def __init__(self, base_url: str, *, endpoint: str, api_key: str, timeout_s: float) -> None:
        root = base_url.rstrip("/")
        self.base_url = root if root.endswith("/v1") else f"{root}/v1"
        self._origin = Origin(self.base_url, api_key)
        self._path = PATHS[endpoint]
        self._chat = endpoint == "chat"
        self._timeout_s = timeout_s

    async def __aenter__(self) -> OpenAIClient:
        """Connections are made as they are needed."""
        return self

    async def __aexit__(self, *_: object) -> None:
        """Close every connection."""
        self._origin.close()

    async def first_model(self) -> str:
        """The name of the first model that the server lists.

        Raises:
            BenchError: there is no such server, or it lists none.
        """
        url = f"{self.base_url}/models"
        whole = _Whole()
        try:
            await self._exchange(self._origin.request("GET", "/models"), whole)
        except (RefusedError, BadResponseError, OSError) as error:
            raise BenchError(
                f"no server answers at {url} ({_reason(error)}); start one, for example with "
                "`rhizome serve --model models/demo`, or give its address with --base-url."
            ) from error
        said = shown(whole.body)
        if whole.status == 503:
            raise BenchError(f"the server at {url} is not ready ({said}); wait a little.")
        if whole.status != 200:
            raise BenchError(
                f"{url} answered {whole.status} ({said}); give the model's name with "
                "--model, or a key with --api-key."
            )
        try:
            return str(orjson.loads(whole.body)["data"][0]["id"])
        except (orjson.JSONDecodeError, LookupError, TypeError):
            raise BenchError(f"{url} lists no models ({said}); give a name with --model.") from None

    def body(
        self, prompt: str | list[dict[str, Any]], model: str, max_tokens: int, extra: Mapping[str, Any]
    ) -> bytes:
        """Encode a streamed request ahead of time.

        Raises:
            BenchError: a conversation was given for the completions endpoint.
        """
        fields: dict[str, Any] = {"model": model, "max_tokens": max_tokens, "stream": True}
        fields["stream_options"] = {"include_usage": True}
        if self._chat:
            is_text = isinstance(prompt, str)
            fields["messages"] = [{"role": "user", "content": prompt}] if is_text else prompt
        elif isinstance(prompt, str):
            fields["prompt"] = prompt
        else:
            raise BenchError("the data set holds conversations; they need --endpoint chat.")
        return orjson.dumps({**fields, **extra})

    async def send(self, body: bytes, due_s: float | None = None) -> RequestRecord:
        """Send a request and read its answer to the end; whatever goes wrong is in the record.

        Args:
            body: made by `body`.
            due_s: when it should have been sent, on `time.perf_counter`; None for now.
        """
        record = RequestRecord(time.perf_counter() if due_s is None else due_s)
        answer = StreamedAnswer(record, chat=self._chat)
        refusal = _Whole()

        def receive(status: int, pieces: list[Piece]) -> None:
            if status == 200:
                answer.read(pieces)
            else:
                refusal(status, pieces)

        try:
            await self._exchange(self._origin.request("POST", self._path, body), receive)
            if refusal.status:
                record.error, record.detail = f"http_{refusal.status}", shown(refusal.body)
            else:
                answer.end()
        except TimeoutError:
            record.error, record.detail = "timeout", f"no complete answer in {self._timeout_s:g} s"
        except RefusedError as error:
            record.error, record.detail = "connection_refused", str(error)
        except OSError as error:
            record.error, record.detail = "connection_lost", _reason(error)
        except BadResponseError as error:
            record.error, record.detail = "bad_stream", str(error)
        except (ValueError, LookupError, TypeError, AttributeError) as error:
            record.error, record.detail = "bad_stream", f"this is no OpenAI stream: {_reason(error)}"
        record.ended_s = time.perf_counter()
        return record

    async def _exchange(self, request: bytes, receive: Callable[[int, list[Piece]], None]) -> None:
        """Send a request on an idle or a new connection, and wait for the end of its response.

        Raises:
            TimeoutError: it took too long.
            RefusedError: the server cannot be reached.
            ConnectionError, BadResponseError: from `Connection.exchange`.
        """
        async with asyncio.timeout(self._timeout_s):
            connection = await self._origin.connection()
            await connection.exchange(request, receive)
        self._origin.give_back(connection)


class _Whole:
    """A response that is not streamed: its status and, once it is complete, its body."""

    def __init__(self) -> None:
        self.status = 0
        self.body = b""

    def __call__(self, status: int, pieces: list[Piece]) -> None:
        self.status = status
        self.body += b"".join(data for _, data in pieces)


def _reason(error: BaseException) -> str:
    return str(error) or type(error).__name__
