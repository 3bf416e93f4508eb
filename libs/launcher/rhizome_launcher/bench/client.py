"""One streamed request to an OpenAI-compatible server, at little cost: the server shares this machine."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Mapping
from typing import Any

import aiohttp
import orjson

from rhizome_launcher.bench.errors import BenchError
from rhizome_launcher.bench.records import RequestRecord
from rhizome_launcher.bench.sse import SseLines

PATHS = {"chat": "chat/completions", "completions": "completions"}
_SHOWN_DETAIL_CHARS = 300
_CONNECT_TIMEOUT_S = 10.0


class OpenAIClient:
    """A session with one server; an async context manager.

    Args:
        base_url: with or without `/v1` at its end.
        endpoint: `chat` or `completions`.
        api_key: sent as a bearer token; empty for none.
        timeout_s: for a whole answer.
    """

    def __init__(self, base_url: str, *, endpoint: str, api_key: str, timeout_s: float) -> None:
        root = base_url.rstrip("/")
        self.base_url = root if root.endswith("/v1") else f"{root}/v1"
        self._url = f"{self.base_url}/{PATHS[endpoint]}"
        self._chat = endpoint == "chat"
        self._headers = {"authorization": f"Bearer {api_key}"} if api_key else {}
        self._timeout = aiohttp.ClientTimeout(total=timeout_s, sock_connect=_CONNECT_TIMEOUT_S)
        self._session: aiohttp.ClientSession | None = None

    async def __aenter__(self) -> OpenAIClient:
        """Open the session; connections are made as they are needed, as many as there are requests."""
        self._session = aiohttp.ClientSession(
            connector=aiohttp.TCPConnector(limit=0, keepalive_timeout=60),
            headers=self._headers,
            timeout=self._timeout,
        )
        return self

    async def __aexit__(self, *_: object) -> None:
        """Close every connection."""
        assert self._session is not None
        await self._session.close()

    async def first_model(self) -> str:
        """The name of the first model that the server lists.

        Raises:
            BenchError: there is no such server, or it lists none.
        """
        assert self._session is not None
        url = f"{self.base_url}/models"
        try:
            async with self._session.get(url) as response:
                body = await response.read()
                if response.status == 503:
                    raise BenchError(f"the server at {url} is not ready ({_shown(body)}); wait a little.")
                if response.status != 200:
                    raise BenchError(
                        f"{url} answered {response.status} ({_shown(body)}); give the model's name with "
                        "--model, or a key with --api-key."
                    )
            return str(orjson.loads(body)["data"][0]["id"])
        except (aiohttp.ClientError, TimeoutError) as error:
            raise BenchError(
                f"no server answers at {url} ({_reason(error)}); start one, for example with "
                "`rhizome serve --model models/demo`, or give its address with --base-url."
            ) from error
        except (orjson.JSONDecodeError, LookupError, TypeError):
            raise BenchError(f"{url} lists no models ({_shown(body)}); give a name with --model.") from None

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
        assert self._session is not None
        record = RequestRecord(time.perf_counter() if due_s is None else due_s)
        try:
            async with self._session.post(
                self._url, data=body, headers={"content-type": "application/json"}
            ) as response:
                if response.status != 200:
                    record.error = f"http_{response.status}"
                    record.detail = _shown(await response.content.read(4096))
                else:
                    await self._read_stream(response, record)
        except TimeoutError:
            record.error, record.detail = "timeout", f"no complete answer in {self._timeout.total:g} s"
        except aiohttp.ClientConnectorError as error:
            record.error, record.detail = "connection_refused", _reason(error)
        except (aiohttp.ClientError, OSError) as error:
            record.error, record.detail = "connection_lost", _reason(error)
        except asyncio.CancelledError:
            raise
        except (orjson.JSONDecodeError, LookupError, TypeError, AttributeError) as error:
            record.error, record.detail = "bad_stream", f"this is no OpenAI stream: {_reason(error)}"
        record.ended_s = time.perf_counter()
        return record

    async def _read_stream(self, response: aiohttp.ClientResponse, record: RequestRecord) -> None:
        lines, complete, pieces = SseLines(), False, 0
        while data := await response.content.readany():
            now = time.perf_counter()
            for payload in lines.feed(data):
                if payload == b"[DONE]":
                    complete = True
                    continue
                event = orjson.loads(payload)
                if error := event.get("error"):
                    record.error = "error_event"
                    record.detail = _shown(orjson.dumps(error))
                    continue
                if usage := event.get("usage"):
                    _count(usage, record)
                for choice in event.get("choices") or ():
                    if _has_text(choice, self._chat):
                        pieces += 1
                        record.text_s.append(now)
                    if choice.get("finish_reason"):
                        complete = True
        if not record.counted_by_server:
            record.output_tokens = pieces
        if not complete and record.ok:
            record.error = "truncated"
            record.detail = f"the stream ended after {pieces} pieces, without a finish reason or [DONE]"


def _count(usage: Mapping[str, Any], record: RequestRecord) -> None:
    record.counted_by_server = True
    record.prompt_tokens = int(usage["prompt_tokens"])
    record.output_tokens = int(usage.get("completion_tokens") or 0)
    details = usage.get("prompt_tokens_details") or {}
    record.cached_tokens = int(details.get("cached_tokens") or 0)


def _has_text(choice: Mapping[str, Any], chat: bool) -> bool:
    """Whether a choice of a chunk holds something generated, rather than a role or an end."""
    if not chat:
        return bool(choice.get("text"))
    delta = choice.get("delta") or {}
    return bool(
        delta.get("content")
        or delta.get("reasoning_content")
        or delta.get("reasoning")
        or delta.get("tool_calls")
    )


def _shown(body: bytes) -> str:
    """The beginning of what a server said, on one line."""
    text = " ".join(body.decode("utf-8", "replace").split())
    return text if len(text) <= _SHOWN_DETAIL_CHARS else text[: _SHOWN_DETAIL_CHARS - 1] + "…"


def _reason(error: BaseException) -> str:
    return str(error) or type(error).__name__
