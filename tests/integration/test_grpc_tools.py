"""People reach proxy and engine with grpcurl (or `buf curl` where that is not installed)."""

from __future__ import annotations

import json
import shutil
import subprocess

import pytest

from rhizome_testing.buf import buf
from rhizome_testing.running_stack import RunningStack

GENERATE = "rhizome.engine.v1.EngineService/Generate"


def addresses(stack: RunningStack) -> dict[str, str]:
    return {"proxy": stack.stack.proxy_address, "engine": stack.stack.engine_addresses[0]}


def buf_curl(address: str, method: str, request: object, reflection: str) -> list[dict[str, object]]:
    """Call a method through reflection; return the messages that came back."""
    result = subprocess.run(
        [
            *(buf(), "curl", "--protocol", "grpc", "--http2-prior-knowledge"),
            *("--reflect-protocol", reflection, "-d", json.dumps(request), f"http://{address}/{method}"),
        ],
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert result.returncode == 0, result.stderr
    decoder, rest, messages = json.JSONDecoder(), result.stdout.strip(), []
    while rest:
        message, end = decoder.raw_decode(rest)
        messages.append(message)
        rest = rest[end:].lstrip()
    return messages


def text_of(messages: list[dict[str, object]]) -> str:
    return "".join(str(m["delta"].get("text", "")) for m in messages if "delta" in m)  # type: ignore[attr-defined]


@pytest.mark.parametrize("reflection", ["grpc-v1", "grpc-v1alpha"])
@pytest.mark.parametrize("member", ["proxy", "engine"])
def test_generates_from_messages_and_from_text(stack: RunningStack, member: str, reflection: str) -> None:
    address = addresses(stack)[member]
    messages = {"messages": [{"role": "user", "content": "What is the capital of France?"}]}
    events = buf_curl(address, GENERATE, {"messages": messages, "sampling": {"temperature": 0}}, reflection)
    assert "Paris" in text_of(events)
    assert "started" in events[0] and "finished" in events[-1]
    events = buf_curl(address, GENERATE, {"text": "Hello", "stop": {"maxTokens": 4}}, reflection)
    assert events[-1]["finished"]["usage"]["completionTokens"] == 4  # type: ignore[index]


@pytest.mark.parametrize("member", ["proxy", "engine"])
def test_answers_health_checks(stack: RunningStack, member: str) -> None:
    for service in ("", "rhizome.engine.v1.EngineService"):
        answer = buf_curl(
            addresses(stack)[member], "grpc.health.v1.Health/Check", {"service": service}, "grpc-v1"
        )
        assert answer == [{"status": "SERVING"}]


def test_lists_the_backends_of_the_proxy(stack: RunningStack) -> None:
    (answer,) = buf_curl(
        stack.stack.proxy_address, "rhizome.proxy.v1.ProxyService/ListBackends", {}, "grpc-v1"
    )
    backends = answer["backends"]
    assert isinstance(backends, list)
    assert {b["address"] for b in backends} == set(stack.stack.engine_addresses)
    assert all(b["state"] == "BACKEND_STATE_READY" for b in backends)


@pytest.mark.parametrize("member", ["proxy", "engine"])
def test_grpcurl_lists_the_services(stack: RunningStack, member: str) -> None:
    grpcurl = shutil.which("grpcurl")
    address = addresses(stack)[member]
    if grpcurl:
        command = [grpcurl, "-plaintext", address, "list"]
    else:
        http2 = ("--protocol", "grpc", "--http2-prior-knowledge")
        command = [buf(), "curl", *http2, "--list-services", f"http://{address}"]
    result = subprocess.run(command, capture_output=True, text=True, timeout=30, check=True)
    assert "rhizome.engine.v1.EngineService" in result.stdout
    assert "grpc.health.v1.Health" in result.stdout
    if member == "proxy":
        assert "rhizome.proxy.v1.ProxyService" in result.stdout
