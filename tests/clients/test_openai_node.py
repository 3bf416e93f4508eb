"""The official npm package, in node."""

from __future__ import annotations

import json
import shutil
import subprocess
import time
from pathlib import Path
from typing import Any

import grpc
import pytest
from tests.clients.conftest import KEY

from rhizome.engine.v1.engine_service_pb2 import GetLoadRequest
from rhizome.engine.v1.engine_service_pb2_grpc import EngineServiceStub
from rhizome_testing.running_stack import RunningStack

PROGRAM = Path(__file__).with_name("openai_node.mjs")
ROOT = PROGRAM.parents[2]
PARIS = "The capital of France is Paris."


def run(base_url: str, scenario: str) -> Any:
    if shutil.which("npm") is None:
        pytest.skip("the package comes from npm, and there is no npm")
    assert (ROOT / "node_modules" / "openai").exists(), "`make test` installs it, or `npm install`"
    done = subprocess.run(
        ["node", str(PROGRAM), base_url, KEY, scenario], capture_output=True, text=True, timeout=90
    )
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


def test_a_question_is_answered(relayed_url: str) -> None:
    seen = run(relayed_url, "whole")
    assert seen["text"] == PARIS and seen["id"]
    streamed = run(relayed_url, "streamed")
    assert streamed["text"] == PARIS
    assert streamed["usage"]["completion_tokens"] == seen["usage"]["completion_tokens"]


def test_the_stream_helper_collects_the_answer(relayed_url: str) -> None:
    seen = run(relayed_url, "helper")
    assert seen["text"] == "".join(seen["deltas"]) == PARIS


def test_a_call_is_the_same_whole_and_streamed(relayed_url: str) -> None:
    seen = run(relayed_url, "called")
    whole, streamed = (seen[name]["message"]["tool_calls"][0]["function"] for name in ("whole", "streamed"))
    assert whole["name"] == streamed["name"] == "roll"
    assert whole["arguments"] == streamed["arguments"]
    assert json.loads(whole["arguments"])["sides"] in (6, 20)
    assert seen["whole"]["finish_reason"] == seen["streamed"]["finish_reason"] == "tool_calls"


def test_the_package_runs_the_tool_that_was_called(relayed_url: str) -> None:
    seen = run(relayed_url, "tools_run")
    assert set(seen["sides"]) <= {6, 20} and seen["sides"]
    assert seen["roles"][:3] == ["user", "assistant", "tool"]


def test_an_abort_reaches_the_engine(stack: RunningStack, base_url: str) -> None:
    before = _aborted(stack)
    assert run(base_url, "aborted")["chunks"] >= 5
    deadline = time.monotonic() + 30
    while _aborted(stack) == before:
        assert time.monotonic() < deadline, "the engine goes on"
        time.sleep(0.02)


def _aborted(stack: RunningStack) -> int:
    total = 0
    for address in stack.stack.engine_addresses:
        with grpc.insecure_channel(address) as channel:
            answer = EngineServiceStub(channel).GetLoad(GetLoadRequest(), timeout=10)
            total += answer.load.totals.aborted
    return total


def test_an_answer_has_the_form_that_was_asked_for(relayed_url: str) -> None:
    assert run(relayed_url, "json")["sides"] in (6, 20)


def test_each_refusal_is_the_error_that_programs_catch(relayed_url: str) -> None:
    assert run(relayed_url, "errors") == {
        "temperature": ["BadRequestError", 400, "invalid_value", "string"],
        "model": ["NotFoundError", 404, "model_not_found", "string"],
        "key": ["AuthenticationError", 401, "invalid_api_key", "string"],
    }


def test_the_other_routes(relayed_url: str) -> None:
    seen = run(relayed_url, "others")
    assert seen["distance"] < 1e-6
    assert "rhizome-demo" in seen["names"]
    assert "12" in seen["completion"]
    assert seen["response"] == PARIS
