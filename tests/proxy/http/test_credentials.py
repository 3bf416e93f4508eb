"""Whose keys go where, and what clients hear of backends."""

from __future__ import annotations

import pytest
from tests.proxy.http.conftest import CHAT, CHATS, Bench, url
from tests.relay.conftest import OK, Call, Received

from rhizome_backends.spec import read_specs

SECRETS = {
    "authorization": "Bearer client",
    "x_api_key": "client",
    "api_key": "client",
    "cookie": "id=client",
}


async def say(call: Call) -> None:
    await call.send(OK)


async def sent(
    bench: Bench, options: str = "", headers: dict[str, str] | None = None, **settings
) -> Received:
    scripted = await bench.script(say)
    face = await bench.proxy(backends=url(scripted) + options, **settings)
    answer = await face.post(CHAT, CHATS, **(SECRETS if headers is None else headers))
    assert answer.status_code == 200
    return next(one for one in scripted.received if one.line.startswith(b"POST"))


def secrets(request: Received) -> dict[str, list[bytes]]:
    names = (b"authorization", b"x-api-key", b"api-key", b"cookie")
    return {name.decode(): request.values(name) for name in names if request.values(name)}


async def test_a_clients_credentials_stay_here(bench: Bench):
    assert secrets(await sent(bench)) == {}


async def test_a_backend_gets_its_own_key(bench: Bench):
    assert secrets(await sent(bench, "?key=own")) == {"authorization": [b"Bearer own"]}


async def test_credentials_pass_where_that_is_wanted(bench: Bench):
    assert secrets(await sent(bench, forward_credentials=True)) == {
        "authorization": [b"Bearer client"],
        "x-api-key": [b"client"],
        "api-key": [b"client"],
        "cookie": [b"id=client"],
    }


async def test_a_backends_key_wins(bench: Bench):
    found = secrets(await sent(bench, "?key=own", forward_credentials=True))
    assert found["authorization"] == [b"Bearer own"]


async def test_a_key_from_a_file(bench: Bench, tmp_path):
    scripted = await bench.script(say)
    (tmp_path / "key").write_text("from-a-file\n")
    file = tmp_path / "backends.yaml"
    file.write_text(f"- {{address: '{url(scripted)}', key_file: key}}\n")
    face = await bench.proxy(backends_file=file)
    await face.post(CHAT, CHATS)
    assert scripted.received[-1].values(b"authorization") == [b"Bearer from-a-file"]
    for page in ("/health", "/metrics", "/docs"):
        assert "from-a-file" not in (await face.client.get(page)).text


async def test_a_trace_passes_untouched_without_tracing(bench: Bench):
    header = f"00-{'ab' * 16}-{'cd' * 8}-01"
    got = await sent(bench, headers={"traceparent": header, "tracestate": "a=b"})
    assert got.values(b"traceparent") == [header.encode()]
    assert got.values(b"tracestate") == [b"a=b"]


@pytest.mark.parametrize("stream", [True, False])
async def test_an_answer_says_where_it_comes_from(bench: Bench, stream):
    server = await bench.simulate()
    face = await bench.proxy(backends=f"{url(server)}?name=gpu-7")
    answer = await face.post(CHAT, {**CHATS, "stream": stream, "max_tokens": 2}, x_request_id="mine")
    headers = answer.headers
    assert (headers["x-rhizome-backend"], headers["x-rhizome-attempts"]) == ("gpu-7", "1")
    assert headers["x-request-id"] == "mine"
    timing = headers["server-timing"]
    assert [part.strip().split(";dur=")[0] for part in timing.split(",")] == ["queue", "connect", "ttfb"]
    assert all(float(part.split("=")[1]) >= 0 for part in timing.split(","))
    assert url(server) not in str(headers)


async def test_a_backend_cannot_speak_for_the_proxy(bench: Bench):
    async def lie(call: Call) -> None:
        await call.send(OK.replace(b"Content", b"x-rhizome-backend: liar\r\nx-request-id: no\r\nContent"))

    face = await bench.proxy(await bench.script(lie))
    answer = await face.post(CHAT, CHATS, x_request_id="mine")
    assert answer.headers.get_list("x-rhizome-backend") == [url(bench.backends[0])]
    assert answer.headers.get_list("x-request-id") == ["mine"]


def test_names_do_not_break_headers(tmp_path):
    file = tmp_path / "backends.yaml"
    file.write_text('- {address: "http://a:1", name: "x\\r\\nset-cookie: y"}\n')
    with pytest.raises(ValueError, match="invisible"):
        read_specs(file)
