"""Log lines of the whole stack: JSON, with the ids of the request on every hop, never with what it says."""

from __future__ import annotations

import json
import secrets
import signal
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest
from tests.deploy.observability.conftest import Watched

from rhizome_testing.gateway_process import GatewayProcess

HOPS = {"rhizome-gateway", "rhizome-proxy", "rhizome-engine-core"}
Line = dict[str, Any]


def lines(watched: Watched) -> list[Line]:
    """Every line of every service so far; fails where one is no JSON object."""
    found: list[Line] = []
    for service in watched.stack.stack.services:
        text = service.log_path.read_text()
        found += map(json.loads, text[: text.rfind("\n") + 1].splitlines())
    return found


def wait_for(watched: Watched, wanted: Callable[[list[Line]], bool], timeout_s: float = 30) -> list[Line]:
    """Lines, once they are as wanted."""
    deadline = time.monotonic() + timeout_s
    while not wanted(found := lines(watched)):
        assert time.monotonic() < deadline, "\n".join(map(str, found[-40:]))
        time.sleep(0.05)
    return found


def tell_all(watched: Watched, number: signal.Signals) -> None:
    """Signal each service, and wait until each of its processes says that it has heard."""
    before = len([line for line in lines(watched) if "log level is" in line["message"]])
    for service in watched.stack.stack.services:
        psutil.Process(service.pid).send_signal(number)
    level = "DEBUG" if number == signal.SIGUSR1 else "INFO"
    wait_for(
        watched,
        lambda found: (
            len([one for one in found if "log level is" in one["message"]]) >= before + 4
            and found_levels(found)[-4:] == [f"the log level is {level} now"] * 4
        ),
    )


def found_levels(found: list[Line]) -> list[str]:
    """What processes said of their level, the latest last."""
    said = [line for line in found if "log level is" in line["message"]]
    return [line["message"] for line in sorted(said, key=lambda line: line["time"])]


@pytest.fixture
def in_detail(watched: Watched) -> Iterator[None]:
    """The whole stack tells at DEBUG what it does."""
    tell_all(watched, signal.SIGUSR1)
    yield
    tell_all(watched, signal.SIGUSR2)


def test_every_line_is_an_object_with_time_level_and_service(watched: Watched) -> None:
    found = lines(watched)
    assert {line["service"] for line in found} >= HOPS | {"rhizome-engine"}
    for line in found:
        assert {"time", "level", "service", "pid", "logger", "message"} <= set(line)
        assert line["level"] in ("INFO", "WARNING") and line["time"].endswith("Z")
    assert any(line["logger"].startswith("uvicorn") for line in found), "uvicorn's lines are among them"


def test_request_and_trace_are_named_on_every_hop(watched: Watched, in_detail: None) -> None:
    trace_id, request_id = secrets.token_hex(16), f"ticket-{secrets.token_hex(4)}"
    headers = {"traceparent": f"00-{trace_id}-{secrets.token_hex(8)}-01", "x-request-id": request_id}
    assert watched.chat("Hello", headers=headers).status_code == 200

    def of_request(found: list[Line]) -> list[Line]:
        return [line for line in found if line.get("trace_id") == trace_id]

    found = wait_for(watched, lambda found: {line["service"] for line in of_request(found)} >= HOPS)
    assert {line.get("request_id") for line in of_request(found)} == {request_id}
    assert not [
        line for line in found if line.get("request_id") == request_id and line.get("trace_id") != trace_id
    ]


def test_an_rpc_that_fails_is_named_by_the_front_too(watched: Watched, in_detail: None) -> None:
    """Embeddings pass the front as an RPC of their own."""
    trace_id, request_id = secrets.token_hex(16), f"ticket-{secrets.token_hex(4)}"
    own = {"traceparent": f"00-{trace_id}-{secrets.token_hex(8)}-00", "x-request-id": request_id}
    own["Authorization"] = f"Bearer {watched.keys['sales']}"
    body = {"model": "rhizome-demo", "input": "Hello"}
    answer = watched.http.post(f"{watched.stack.url}/v1/embeddings", json=body, headers=own)
    assert answer.status_code == 200
    wait_for(
        watched,
        lambda found: (
            {line["service"] for line in found if line.get("request_id") == request_id}
            >= {"rhizome-gateway", "rhizome-proxy", "rhizome-engine"}
        ),
    )


def test_the_level_goes_back(watched: Watched) -> None:
    tell_all(watched, signal.SIGUSR1)
    tell_all(watched, signal.SIGUSR2)
    before = len(lines(watched))
    assert watched.chat("Hello").status_code == 200
    assert not [line for line in lines(watched)[before:] if line["level"] == "DEBUG"]


SECRET = "tangerine-submarine"


def bad_and_good(watched: Watched) -> None:
    """Requests with the secret in every place where text goes, right and wrong ones."""
    messages = [{"role": "user", "content": SECRET}]
    for fields in (
        {},
        {"stream": True, "max_tokens": 3},
        {"stop": [SECRET]},
        {"temperature": SECRET},
        {"max_tokens": 10**6},
        {"logit_bias": {SECRET: 1}},
        {"tools": [{"type": "function", "function": {"name": SECRET, "parameters": {"type": SECRET}}}]},
        {
            "response_format": {
                "type": "json_schema",
                "json_schema": {"name": "x", "schema": {"type": SECRET}},
            }
        },
        {"messages": [{"role": SECRET, "content": SECRET}]},
        {"messages": [*messages, {"role": "tool", "content": SECRET}]},
        {SECRET: SECRET},
        {"model": SECRET},
    ):
        watched.chat(SECRET, **{"messages": messages, **fields})
    own = {"Authorization": f"Bearer {watched.keys['sales']}", "content-type": "application/json"}
    url = f"{watched.stack.url}/v1/chat/completions"
    for content in (
        f'{{"messages": "{SECRET}',
        f'"{SECRET}"',
        f"{SECRET}\udcff".encode("utf-8", "surrogateescape"),
    ):
        watched.http.post(url, content=content, headers=own)
    for path, body in (
        ("/v1/completions", {"prompt": [SECRET, SECRET]}),
        ("/v1/embeddings", {"input": [SECRET, {"x": SECRET}]}),
        ("/v1/responses", {"input": SECRET, "instructions": SECRET}),
        ("/v1/messages", {"messages": messages, "max_tokens": 3, "system": SECRET}),
        ("/tokenize", {"prompt": SECRET}),
    ):
        answer = watched.http.post(
            f"{watched.stack.url}{path}", json={"model": "rhizome-demo", **body}, headers=own, timeout=60
        )
        assert answer.status_code < 500


def test_no_line_has_what_a_request_says(watched: Watched, in_detail: None) -> None:
    bad_and_good(watched)
    last = f"ticket-{secrets.token_hex(4)}"
    assert watched.chat("Hello", headers={"x-request-id": last}).status_code == 200
    wait_for(
        watched, lambda found: {line["service"] for line in found if line.get("request_id") == last} >= HOPS
    )
    for service in watched.stack.stack.services:
        assert SECRET not in service.log_path.read_text(), service.name


def test_prompts_are_logged_only_where_that_was_asked_for(watched: Watched, tmp_path: Path) -> None:
    proxy = watched.stack.stack.proxy_address
    arguments = ("--log-prompts", "--log-format", "json")
    with GatewayProcess(proxy, tmp_path, *arguments) as gateway:
        gateway.wait_ready()
        body = {"model": "rhizome-demo", "messages": [{"role": "user", "content": SECRET}], "max_tokens": 2}
        assert watched.http.post(f"{gateway.url}/v1/chat/completions", json=body).status_code == 200
        gateway.wait_until(lambda: SECRET in gateway.output, "the prompt is in the log")
        (line,) = [one for one in map(json.loads, gateway.output.splitlines()) if SECRET in one["message"]]
        assert line["request_id"] and line["trace_id"]
