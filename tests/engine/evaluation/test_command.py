"""`rhizome bench engine` and `rhizome eval` as a person types them."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from rhizome_engine.evaluation import __main__ as evaluation
from rhizome_testing.checkpoints import write_llama_checkpoint
from rhizome_testing.running_stack import DEMO_MODEL


def rhizome(*arguments: str, text: str = "") -> tuple[int, str, str]:
    done = subprocess.run(
        [sys.executable, "-m", "rhizome_launcher", *arguments],
        input=text,
        capture_output=True,
        text=True,
        timeout=110,
        check=False,
    )
    return done.returncode, done.stdout, done.stderr


def last_json(output: str) -> dict[str, Any]:
    report = json.loads(output.splitlines()[-1])
    assert isinstance(report, dict)
    return report


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> str:
    return str(write_llama_checkpoint(tmp_path_factory.mktemp("checkpoint")))


def test_bench_engine_prints_a_table_and_json(model: str) -> None:
    code, output, errors = rhizome(
        *("bench", "engine", "--model", model, "--rows", "1,3", "--input-tokens", "16"),
        *("--output-tokens", "8", "--repeat", "1", "--dtype", "float32", "--json", "-"),
        *("--engine-option", "max_step_tokens=64", "--engine-option", "num_pages=32"),
    )
    assert (code, errors) == (0, "")
    assert "prefill tok/s" in output and "decode tok/s" in output and "loaded in" in output
    report = last_json(output)
    assert [level["streams"] for level in report["levels"]] == [1, 3]
    assert all(level["decode_tok_s"] > 0 for level in report["levels"])
    assert report["kv_tokens"] == 32 * 16
    assert report["engine_options"] == {
        "device": "auto",
        "dtype": "float32",
        "max_step_tokens": 64,
        "num_pages": 32,
    }
    assert report["interrupted"] is False


def test_perplexity_of_a_file_and_of_standard_input_are_the_same(model: str, tmp_path: Path) -> None:
    text = "Some text, a few words of it, and 你好.\n" * 5
    path = tmp_path / "text.txt"
    path.write_text(text)
    reports = []
    for target, given in ((str(path), ""), ("-", text)):
        code, output, errors = rhizome(
            *("eval", "perplexity", "--model", model, "--text", target, "--context", "64", "--json", "-"),
            text=given,
        )
        assert (code, errors) == (0, "")
        assert "bits per byte" in output and "±" in output
        reports.append(last_json(output))
    assert reports[0]["perplexity"] == reports[1]["perplexity"] > 1
    assert (reports[0]["context"], reports[0]["stride"]) == (64, 32)


def test_skills_are_listed_with_their_shares(tmp_path: Path) -> None:
    questions = tmp_path / "questions.jsonl"
    asked = {"role": "user", "content": "What is the capital of France?"}
    lines = [
        {"skill": "capital", "messages": [asked], "answer": "The capital of France is Paris."},
        {"skill": "wrong", "messages": [asked], "answer": "No idea."},
    ]
    questions.write_text("\n".join(map(json.dumps, lines)))
    code, output, _ = rhizome(
        "eval", "skills", "--model", str(DEMO_MODEL), "--corpus", str(questions), "--json", "-"
    )
    assert code == 0
    report = last_json(output)
    assert report["skills"]["capital"] == {"asked": 1, "right": 1, "share": 1.0}
    assert report["skills"]["wrong"]["right"] == 0
    assert report["mean_share"] == 0.5


@pytest.mark.parametrize(
    ("arguments", "text"),
    [
        (["bench", "engine", "--model", "."], "there is no config.json"),
        (["bench", "engine", "--model", "{model}", "--rows", "one"], "--rows takes positive integers"),
        (["bench", "engine", "--model", "{model}", "--engine-option", "speed=11"], "is no engine option"),
        (
            ["bench", "engine", "--model", "{model}", "--engine-option", "max_step_tokens=0"],
            "max_step_tokens must be at least 1",
        ),
        (["bench", "engine", "--model", "{model}", "--input-tokens", "100000"], "100000"),
        (["eval", "perplexity", "--model", "{model}", "--text", "nowhere.txt"], "nowhere.txt"),
        (["eval", "perplexity", "--model", "{model}", "--text", "-"], "at least 2 are needed"),
        (["eval", "skills", "--model", "{model}", "--corpus", "nowhere.py"], "there is no nowhere.py"),
    ],
)
def test_what_cannot_be_measured_is_explained(model: str, arguments: list[str], text: str) -> None:
    code, _, errors = rhizome(*(argument.replace("{model}", model) for argument in arguments))
    assert code == 1
    assert "error: " in errors and text in errors
    assert "Traceback" not in errors


def test_an_interrupt_keeps_the_figures_so_far(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def measure(*_: object, **__: object) -> Iterator[dict[str, Any]]:
        yield {"levels": [1]}
        yield {"levels": [1, 2], "decode_tok_s": float("inf")}
        raise KeyboardInterrupt

    monkeypatch.setattr(evaluation, "measure_speed", measure)
    monkeypatch.setattr(sys, "argv", ["evaluation", "speed", "--model", "m"])
    assert evaluation.main() == 0
    report = last_json(capsys.readouterr().out)
    assert report == {"levels": [1, 2], "decode_tok_s": None, "interrupted": True}


def test_an_interrupt_before_the_first_figure_is_a_failure(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def measure(*_: object, **__: object) -> Iterator[dict[str, Any]]:
        raise KeyboardInterrupt
        yield {}

    monkeypatch.setattr(evaluation, "measure_speed", measure)
    monkeypatch.setattr(sys, "argv", ["evaluation", "speed", "--model", "m"])
    assert evaluation.main() == 1
    assert "interrupted before there was a figure" in capsys.readouterr().err
