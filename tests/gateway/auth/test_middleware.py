"""No path without a key, over real sockets."""

from __future__ import annotations

import asyncio

import httpx
import pytest
from starlette.responses import JSONResponse
from starlette.types import Receive, Scope, Send

from rhizome_gateway.auth.caller import SCOPE_KEY, caller_of
from rhizome_gateway.auth.guard import Guard
from rhizome_gateway.auth.key_ring import KeyRing
from rhizome_gateway.auth.ledger import MemoryLedger
from rhizome_gateway.auth.middleware import AuthMiddleware, is_public
from rhizome_gateway.errors import ApiError


async def who_am_i(scope: Scope, receive: Receive, send: Send) -> None:
    """Answers every path and method with the caller's name."""
    name = caller_of(scope).name if SCOPE_KEY in scope else None
    await JSONResponse({"caller": name})(scope, receive, send)


@pytest.fixture
def keys(write_keys) -> KeyRing:
    return KeyRing(write_keys(alice={"requests_per_minute": 2}, bob={}, gone={"disabled": True}))


def bearer(key: str) -> dict[str, str]:
    return {"Authorization": f"Bearer {key}"}


def assert_refused(response: httpx.Response) -> None:
    assert response.status_code == 401
    assert response.headers["www-authenticate"] == "Bearer"
    error = response.json()["error"]
    assert (error["type"], error["code"], error["param"]) == (
        "invalid_request_error",
        "invalid_api_key",
        None,
    )


async def test_a_key_in_either_header_says_who_asks(serve, keys):
    async with serve(AuthMiddleware(who_am_i, keys)) as client:
        for headers, name in [
            (bearer("sk-alice"), "alice"),
            ({"Authorization": "bearer   sk-alice"}, "alice"),
            ({"x-api-key": "sk-bob"}, "bob"),
            (bearer("sk-alice") | {"x-api-key": "sk-bob"}, "alice"),
            ({"Authorization": "Basic YTpi", "x-api-key": "sk-bob"}, "bob"),
        ]:
            assert (await client.get("/v1/models", headers=headers)).json() == {"caller": name}


@pytest.mark.parametrize(
    "headers",
    [
        [],
        [("Authorization", "")],
        [("Authorization", "Bearer")],
        [("Authorization", "Bearer sk-nobody")],
        [("Authorization", "Bearer sk-gone")],
        [("Authorization", "Bearer sk-alice, Bearer sk-bob")],
        [("Authorization", "Bearer sk-alice sk-alice")],
        [("Authorization", "Basic sk-alice")],
        [("Authorization", "sk-alice")],
        [("Authorization", "Bearer sk-alice"), ("Authorization", "Bearer sk-alice")],
        [("Authorization", "Bearer sk-nobody"), ("x-api-key", "sk-alice")],
        [("x-api-key", "sk-nobody")],
        [("x-api-key", "Bearer sk-alice")],
        [("x-api-key", "sk-alice"), ("x-api-key", "sk-alice")],
        [("Authorization", "Bearer " + "x" * 8000)],
        [("Authorization", b"Bearer \xff\xfe")],
        [("Cookie", "api_key=sk-alice")],
    ],
)
async def test_anything_but_one_valid_key_is_a_401(serve, keys, headers):
    async with serve(AuthMiddleware(who_am_i, keys)) as client:
        assert_refused(await client.get("/v1/models?api_key=sk-alice", headers=headers))


async def raw_status(client: httpx.AsyncClient, target: str, *headers: str) -> int:
    """The status for a request as written here; clients tidy up what they send."""
    reader, writer = await asyncio.open_connection("127.0.0.1", client.base_url.port)
    lines = (f"GET {target} HTTP/1.1", *headers, "Connection: close", "", "")
    writer.write("\r\n".join(lines).encode("latin-1"))
    answer = await reader.read()
    writer.close()
    return int(answer.split()[1])


async def test_every_path_and_method_needs_a_key_but_the_public_ones(serve, keys):
    async with serve(AuthMiddleware(who_am_i, keys)) as client:
        for path in ("/health", "/ready", "/", "/assets/app.js", "/health?key=none", "/he%61lth"):
            assert await raw_status(client, path, "Host: x") == 200, path
        for path in (
            "/v1/chat/completions", "/metrics", "/docs", "/openapi.json", "/nothing", "/health/", "/healthy",
            "//health", "/health/x", "/Health", "/assets", "/assets/../v1/models", "/assets/%2e%2e/metrics",
            "/assets/..%5cmetrics", "/version", "/health%00", "/health;x", "/v1/../health", "/health%3f",
            "/v1/models?/health", "/./health",
        ):  # fmt: skip
            assert await raw_status(client, path, "Host: x") == 401, path
        for method in ("POST", "PUT", "DELETE", "PATCH", "OPTIONS", "TRACE"):
            assert_refused(await client.request(method, "/v1/models"))


async def test_neither_the_host_nor_an_absolute_address_makes_a_path_public(serve, keys):
    async with serve(AuthMiddleware(who_am_i, keys)) as client:
        assert await raw_status(client, "/v1/models", "Host: x/health?") == 401
        assert await raw_status(client, "http://x/v1/models#/health", "Host: x") == 401
        assert await raw_status(client, "http://x/health/v1/models", "Host: x") == 401


async def test_header_values_that_clients_do_not_send_are_no_keys(serve, keys):
    async with serve(AuthMiddleware(who_am_i, keys)) as client:
        for header in ("Authorization: Bearer ", "Authorization:Bearer", "x-api-key: ", "x-api-key: \xff"):
            assert await raw_status(client, "/v1/models", "Host: x", header) == 401, header
        assert await raw_status(client, "/v1/models", "Host: x", "AUTHORIZATION: BEARER sk-alice ") == 200


async def test_a_refusal_does_not_repeat_what_was_sent(serve, keys):
    async with serve(AuthMiddleware(who_am_i, keys)) as client:
        response = await client.get("/v1/models", headers=bearer("sk-secret-typo"))
        assert "secret" not in response.text
        assert "secret" not in str(response.headers)


async def test_without_keys_everybody_is_one_anonymous_caller(serve):
    async with serve(AuthMiddleware(who_am_i, None)) as client:
        for headers in ({}, bearer("whatever")):
            assert (await client.get("/v1/models", headers=headers)).json() == {"caller": "anonymous"}


async def test_other_apis_have_their_own_envelope(serve, keys):
    def render(scope: Scope, error: ApiError) -> JSONResponse:
        return JSONResponse({"type": "error", "path": scope["path"]}, error.status, error.headers)

    async with serve(AuthMiddleware(who_am_i, keys, render)) as client:
        response = await client.post("/v1/messages")
        assert (response.status_code, response.json()) == (401, {"type": "error", "path": "/v1/messages"})


async def test_a_websocket_is_closed_before_it_opens(keys):
    sent = []

    async def send(message) -> None:
        sent.append(message)

    async def receive():
        return {"type": "websocket.connect"}

    for ring in (keys, None):
        await AuthMiddleware(who_am_i, ring)({"type": "websocket", "path": "/health"}, receive, send)
    assert [message["type"] for message in sent] == ["websocket.close"] * 2


async def test_limits_are_on_the_wire_of_answers_and_refusals(serve, keys):
    guard = Guard(MemoryLedger(), max_open_requests=10)

    async def limited(scope: Scope, receive: Receive, send: Send) -> None:
        try:
            with guard.admit(caller_of(scope), prompt_tokens=3) as permit:
                await JSONResponse({}, headers=dict(permit.headers))(scope, receive, send)
        except ApiError as error:
            await error.response()(scope, receive, send)

    async with serve(AuthMiddleware(limited, keys)) as client:
        answers = [await client.get("/v1/x", headers=bearer("sk-alice")) for _ in range(3)]
        assert [answer.status_code for answer in answers] == [200, 200, 429]
        remaining = [answer.headers["x-ratelimit-remaining-requests"] for answer in answers]
        assert remaining == ["1", "0", "0"]
        assert int(answers[2].headers["retry-after"]) in range(1, 31)
        assert answers[2].json()["error"]["type"] == "rate_limit_error"
        free = await client.get("/v1/x", headers=bearer("sk-bob"))
        assert free.status_code == 200
        assert not [name for name in free.headers if name.startswith("x-ratelimit")]


@pytest.mark.parametrize("path", ["/assets/..", "/assets/a/../../x", "/assets/a\\..\\x", "/asset", ""])
def test_odd_paths_are_not_public(path):
    assert not is_public(path)
