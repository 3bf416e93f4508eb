"""LiteLLM as a client, in an environment of its own: it needs other versions than the rest."""

from __future__ import annotations

import json
import subprocess
from pathlib import Path
from typing import Any

import pytest
from tests.clients.conftest import KEY

from rhizome_testing.openai_watch import watching_openai
from rhizome_testing.running_stack import RunningStack
from rhizome_testing.watched_relay import watched_relay

PROGRAM = Path(__file__).with_name("litellm_program.py")
PYTHON = PROGRAM.parents[2] / ".venv" / "litellm" / "bin" / "python"
PARIS = "The capital of France is Paris."


@pytest.fixture(scope="module")
def seen(stack: RunningStack) -> dict[str, Any]:
    """What came of each function of the program; the traceback as a text where it failed."""
    assert PYTHON.exists(), "`make test` installs LiteLLM into .venv/litellm"
    # Without the variable it fetches a list of prices when it is imported.
    environment = {"LITELLM_LOCAL_MODEL_COST_MAP": "True", "PATH": "/usr/bin:/bin"}
    with watching_openai() as watch:
        with watched_relay(stack.url) as url:
            done = subprocess.run(
                [PYTHON, PROGRAM, f"{url}/v1", KEY],
                env=environment,
                capture_output=True,
                text=True,
                timeout=90,
            )
        assert done.returncode == 0, done.stderr
        assert watch.num_checked > 10
        assert not watch.problems, "\n".join(watch.problems)
    results: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return results


def test_completion(seen: dict[str, Any]) -> None:
    assert seen["completion"] == {"text": PARIS, "reason": "stop", "adds_up": True}
    assert seen["acompletion"] == [PARIS] * 4


def test_streams(seen: dict[str, Any]) -> None:
    assert seen["streaming"] == {"text": PARIS, "built": PARIS, "tokens": seen["streaming"]["tokens"]}
    assert seen["streaming"]["tokens"] > 0
    assert seen["astreaming"] == PARIS


def test_a_call_is_the_same_whole_and_streamed(seen: dict[str, Any]) -> None:
    whole, streamed = seen["tools"]
    assert whole == streamed
    assert whole[:2] == ["tool_calls", "roll"] and whole[2]["sides"] in (6, 20)


def test_an_answer_has_the_form_that_was_asked_for(seen: dict[str, Any]) -> None:
    assert seen["json_schema"]["sides"] in (6, 20)


def test_vectors(seen: dict[str, Any]) -> None:
    assert seen["embedding"]["lengths"] == [256, 256]
    assert seen["embedding"]["distance"] < 1e-6


def test_the_other_routes(seen: dict[str, Any]) -> None:
    assert "12" in seen["text_completion"]
    assert seen["responses"] == [PARIS]


def test_each_refusal_is_the_exception_that_programs_catch(seen: dict[str, Any]) -> None:
    assert seen["errors"] == {
        "temperature": ["BadRequestError", 400],
        "model": ["NotFoundError", 404],
        "key": ["AuthenticationError", 401],
        "context": ["ContextWindowExceededError", 400],
    }
