"""Strangers, foreign names and foreign pages stay out."""

from __future__ import annotations

import logging

import pytest
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse
from starlette.routing import Route

from rhizome_gateway.auth.exposure import ExposureError, check_exposure, is_loopback, protect
from rhizome_gateway.auth.key_ring import KeyRing

PAGE = "https://chat.example"


async def _answer(_: Request) -> JSONResponse:
    return JSONResponse({}, headers={"x-request-id": "r"})


APP = Starlette(routes=[Route("/v1/x", _answer, methods=["POST", "GET"]), Route("/health", _answer)])


@pytest.mark.parametrize("host", ["0.0.0.0", "::", "192.0.2.1", "", "gateway.example", "[::]", "2001:db8::1"])
def test_without_keys_only_loopback_is_listened_on(host):
    with pytest.raises(ExposureError, match=r"--keys-file.*--allow-open"):
        check_exposure(host, has_keys=False, allow_open=False)
    check_exposure(host, has_keys=True, allow_open=False)


@pytest.mark.parametrize("host", ["127.0.0.1", "localhost", "::1", "[::1]", "127.8.9.1"])
def test_loopback_is_known_in_all_its_forms(host):
    assert is_loopback(host)
    check_exposure(host, has_keys=False, allow_open=False)


@pytest.mark.parametrize(("host", "allow_open"), [("127.0.0.1", False), ("0.0.0.0", True)])
def test_an_open_gateway_says_so(host, allow_open, caplog):
    with caplog.at_level(logging.WARNING):
        check_exposure(host, has_keys=False, allow_open=allow_open)
    assert "everybody" in caplog.text


def test_a_gateway_with_keys_does_not_call_itself_open(caplog):
    with caplog.at_level(logging.WARNING):
        check_exposure("0.0.0.0", has_keys=True, allow_open=True)
    assert not caplog.text


async def test_on_loopback_only_its_own_names_are_answered_to(serve):
    app = protect(APP, host="127.0.0.1", keys=None, allowed_hosts=["Box.Example", "fd00::1"])
    async with serve(app) as client:
        for host in (
            "localhost", "LOCALHOST:8000", "127.0.0.1:1", "[::1]:8000", "[::1]", "box.example:80",
            "localhost.", "[fd00::1]",
        ):  # fmt: skip
            assert (await client.get("/v1/x", headers={"Host": host})).status_code == 200, host
        for host in (
            "evil.example",
            "localhost.evil.example",
            "evil.example:8000",
            "",
            "[::2]",
            "127.0.0.2",
            "::1",
        ):
            response = await client.get("/v1/x", headers={"Host": host})
            assert (response.status_code, response.json()["error"]["code"]) == (403, "host_not_allowed"), host
            assert "evil" not in response.text


async def test_a_request_with_two_hosts_or_none_is_refused():
    statuses = []

    async def send(message) -> None:
        if message["type"] == "http.response.start":
            statuses.append(message["status"])

    async def receive():
        return {"type": "http.request", "body": b"", "more_body": False}

    app = protect(APP, host="127.0.0.1", keys=None)
    local = (b"host", b"localhost")
    for headers in ([local], [local, (b"host", b"evil.example")], [local, local], []):
        scope = {"type": "http", "method": "GET", "path": "/v1/x", "query_string": b"", "headers": headers}
        await app(scope, receive, send)
    assert statuses == [200, 403, 403, 403]


async def test_hosts_are_not_checked_where_keys_decide_or_any_is_allowed(serve, write_keys):
    foreign = {"Host": "gateway.example", "x-api-key": "sk-alice"}
    keys = KeyRing(write_keys(alice={}))
    for app in (
        protect(APP, host="127.0.0.1", keys=keys),
        protect(APP, host="0.0.0.0", keys=None),
        protect(APP, host="127.0.0.1", keys=None, allowed_hosts=["*"]),
    ):
        async with serve(app) as client:
            assert (await client.get("/v1/x", headers=foreign)).status_code == 200


async def test_names_given_for_an_open_gateway_are_the_only_ones(serve):
    async with serve(protect(APP, host="0.0.0.0", keys=None, allowed_hosts=["gateway.example"])) as client:
        assert (await client.get("/v1/x", headers={"Host": "gateway.example"})).status_code == 200
        assert (await client.get("/v1/x", headers={"Host": "evil.example"})).status_code == 403


async def test_without_origins_there_is_no_cors_at_all(serve, write_keys):
    preflight = {"Origin": PAGE, "Access-Control-Request-Method": "POST"}
    for keys, status in ((None, 405), (KeyRing(write_keys(alice={})), 401)):
        async with serve(protect(APP, host="127.0.0.1", keys=keys)) as client:
            response = await client.options("/v1/x", headers=preflight)
            assert response.status_code == status
            answer = await client.get("/v1/x", headers={"Origin": PAGE, "x-api-key": "sk-alice"})
            assert answer.status_code == 200
            for headers in (response.headers, answer.headers):
                assert not [name for name in headers if name.startswith("access-control")]


async def test_pages_of_listed_origins_may_ask_and_read_refusals(serve, write_keys):
    keys = KeyRing(write_keys(alice={}))
    asks = {"Access-Control-Request-Method": "POST", "Access-Control-Request-Headers": "authorization"}
    async with serve(protect(APP, host="127.0.0.1", keys=keys, cors_origins=[PAGE])) as client:
        response = await client.options("/v1/x", headers={"Origin": PAGE} | asks)
        assert response.status_code == 200
        assert response.headers["access-control-allow-origin"] == PAGE
        assert "access-control-allow-credentials" not in response.headers
        response = await client.options("/v1/x", headers={"Origin": "https://evil.example"} | asks)
        assert response.status_code == 400
        assert "access-control-allow-origin" not in response.headers
        refusal = await client.post("/v1/x", headers={"Origin": PAGE})
        assert refusal.status_code == 401
        assert refusal.headers["access-control-allow-origin"] == PAGE
        answer = await client.post("/v1/x", headers={"Origin": PAGE, "x-api-key": "sk-alice"})
        assert "x-ratelimit-remaining-tokens" in answer.headers["access-control-expose-headers"]
