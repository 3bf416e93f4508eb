"""`llm`, the command."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from tests.clients.conftest import KEY

PARIS = "The capital of France is Paris."
Llm = Callable[..., str]


@pytest.fixture
def llm(tmp_path: Path, relayed_url: str) -> Llm:
    models = [
        {"model_id": "demo", "supports_tools": True, "supports_schema": True},
        {"model_id": "demo-text", "completion": True},
    ]
    common = {"model_name": "rhizome-demo", "api_base": relayed_url, "api_key_name": "rhizome"}
    # JSON is YAML too.
    (tmp_path / "extra-openai-models.yaml").write_text(json.dumps([common | model for model in models]))
    (tmp_path / "keys.json").write_text(json.dumps({"rhizome": KEY}))

    def run(*arguments: str) -> str:
        done = subprocess.run(
            [sys.executable, "-m", "llm", *arguments],
            env={"LLM_USER_PATH": str(tmp_path), "PATH": "/usr/bin:/bin", "LANG": "C.UTF-8"},
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=90,
        )
        assert done.returncode == 0, done.stderr
        return done.stdout.strip()

    return run


def test_it_asks_and_remembers(llm: Llm) -> None:
    question = ("-m", "demo", "-o", "temperature", "0", "What is the capital of France?")
    assert llm(*question) == PARIS
    assert llm(*question, "--no-stream") == PARIS
    assert llm("-c", "-o", "temperature", "0", "Who are you?") == "I am Rhizome, a small language model."
    logged = json.loads(llm("logs", "--json", "-n", "1"))[0]
    assert logged["input_tokens"] > 0 and logged["output_tokens"] > 0


def test_a_system_prompt_counts(llm: Llm) -> None:
    told = ("-m", "demo", "-s", "Your name is Zorro.", "-o", "temperature", "0")
    assert llm(*told, "Who are you?") == "I am Zorro, a small language model."


def test_an_answer_has_the_schema_that_was_asked_for(llm: Llm) -> None:
    schema = {
        "type": "object",
        "properties": {"sides": {"enum": [6, 20]}},
        "required": ["sides"],
        "additionalProperties": False,
    }
    answer = llm("-m", "demo", "-o", "temperature", "0", "--schema", json.dumps(schema), "Hi")
    assert json.loads(answer)["sides"] in (6, 20)


def test_tools_may_be_offered(llm: Llm) -> None:
    answer = llm("-m", "demo", "-T", "llm_version", "-o", "temperature", "0", "Hi")
    assert answer


def test_a_text_is_continued(llm: Llm) -> None:
    continued = llm("-m", "demo-text", "-o", "temperature", "0", "-o", "max_tokens", "2", "7 + 5 =")
    assert "12" in continued
