"""The watch sees what clients get over real sockets, and the relay shows it the rest."""

from __future__ import annotations

import asyncio
import http.client
import json
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import httpx
import openai
import pytest

from rhizome_testing.openai_watch import watching_openai
from rhizome_testing.watched_relay import watched_relay

MODELS = {"object": "list", "data": [{"id": "m", "object": "model", "created": 1, "owned_by": "o"}]}


class Server:
    """Answers every request with what it is told to."""

    def __init__(self) -> None:
        self.status = 200
        self.body = json.dumps(MODELS).encode()
        self.headers = {"content-type": "application/json", "x-request-id": "1"}
        outer = self

        class Handler(BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                self.rfile.read(int(self.headers.get("content-length", 0)))
                self.send_response(outer.status)
                for name, value in outer.headers.items():
                    self.send_header(name, value)
                self.send_header("content-length", str(len(outer.body)))
                self.end_headers()
                self.wfile.write(outer.body)

            do_POST = do_GET  # noqa: N815  (the name is the base class's)

            def log_message(self, *_: Any) -> None:
                pass

        self.http = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self.http.server_port}"


@pytest.fixture
def server() -> Iterator[Server]:
    server = Server()
    thread = threading.Thread(target=server.http.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    yield server
    server.http.shutdown()
    thread.join()
    server.http.server_close()


def ask_plainly(url: str) -> None:
    httpx.get(f"{url}/v1/models")


def ask_asynchronously(url: str) -> None:
    async def ask() -> None:
        async with openai.AsyncOpenAI(base_url=f"{url}/v1", api_key="k") as client:
            await client.models.list()

    asyncio.run(ask())


def ask_by_sdk(url: str) -> None:
    with openai.OpenAI(base_url=f"{url}/v1", api_key="k") as client:
        client.models.list()


@pytest.mark.parametrize("ask", [ask_plainly, ask_asynchronously, ask_by_sdk])
def test_every_client_is_watched(server: Server, ask: Any) -> None:
    with watching_openai() as watch:
        ask(server.url)
        assert (watch.num_checked, watch.problems) == (1, [])
        server.body = json.dumps(MODELS | {"object": "page"}).encode()
        ask(server.url)
    assert watch.num_checked == 2
    assert [problem[:30] for problem in watch.problems] == ["GET /v1/models 200: object: In"]
    ask(server.url)
    assert watch.num_checked == 2


def test_errors_and_headers_are_watched(server: Server) -> None:
    with watching_openai() as watch:
        server.status, server.body = 401, b'{"error":"Unauthorized"}'
        httpx.get(f"{server.url}/tokenize")
        assert len(watch.problems) == 1
        server.headers["content-type"] = "text/html"
        server.status = 200
        httpx.post(f"{server.url}/v1/chat/completions")
        assert "text/html" in watch.problems[1]
        del server.headers["x-request-id"]
        httpx.post(f"{server.url}/v1/chat/completions")
        assert "x-request-id" in watch.problems[2]
        httpx.get(f"{server.url}/somewhere")
    assert len(watch.problems) == 3


def test_a_stream_is_watched_as_far_as_it_is_read(server: Server) -> None:
    server.headers["content-type"] = "text/event-stream"
    server.body = b'data: {"id": 5}\n\n' + b"data: [DONE]\n\n"
    with watching_openai() as watch:
        with httpx.stream("POST", f"{server.url}/v1/chat/completions") as answer:
            next(answer.iter_raw(8))
        assert any("id: " in problem for problem in watch.problems)


def test_the_relay_shows_the_watch_what_other_processes_get(server: Server) -> None:
    server.body = b'{"error":{"message":"m"}}'
    server.status = 400
    with watching_openai() as watch, watched_relay(server.url) as url:
        answer = _without_the_watch(f"{url}/v1/completions")
    assert (answer[0], answer[1]) == (400, server.body)
    assert watch.num_checked == 1 and watch.problems


def _without_the_watch(url: str) -> tuple[int, bytes]:
    host, _, path = url.removeprefix("http://").partition("/")
    connection = http.client.HTTPConnection(host)
    connection.request("POST", f"/{path}", b"{}", {"content-type": "application/json"})
    answer = connection.getresponse()
    read = answer.status, answer.read()
    connection.close()
    return read
