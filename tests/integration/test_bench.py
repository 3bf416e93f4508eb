"""`rhizome bench serve` against the real stack: what it reports is what was asked for and what came."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from rhizome_testing.running_stack import RunningStack


def bench(stack: RunningStack, *arguments: str) -> tuple[dict[str, Any], str]:
    done = subprocess.run(
        [
            *(sys.executable, "-m", "rhizome_launcher", "bench", "serve", "--base-url", stack.url),
            *("--json", "-", *arguments),
        ],
        capture_output=True,
        text=True,
        timeout=110,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout.splitlines()[-1]), done.stdout


def test_a_closed_loop_counts_every_token(stack: RunningStack) -> None:
    report, _ = bench(
        stack, "--concurrency", "1,4", "--num-prompts", "6", "--input-tokens", "90", "--output-tokens", "12"
    )
    assert report["model"] == "rhizome-demo"
    for level in report["levels"]:
        assert (level["succeeded"], level["failed"]) == (6, 0)
        assert level["tokens_counted_by_server"] is True
        assert level["output_tokens"] == 6 * 12
        # The server's tokenizer was measured, not known: lengths vary by the words that were drawn.
        assert level["prompt_tokens"] / 6 == pytest.approx(90, rel=0.15)
        # New prompts each time: only the chat template's beginning is in the cache.
        assert level["cached_tokens"] / level["prompt_tokens"] < 0.3
        assert 0 < level["ttft_ms_p50"] < level["e2e_ms_p50"]
        assert level["tpot_ms_mean"] > 0


def test_a_shared_prefix_is_found_in_the_cache(stack: RunningStack) -> None:
    """Two engines: each has to see the prefix once."""
    report, _ = bench(
        stack,
        *("--concurrency", "1", "--num-prompts", "12", "--warmup", "4"),
        *("--input-tokens", "200", "--shared-prefix-tokens", "150", "--output-tokens", "2"),
    )
    (level,) = report["levels"]
    assert level["cached_tokens"] / level["prompt_tokens"] > 0.5


def test_an_open_loop_with_a_goal(stack: RunningStack) -> None:
    report, output = bench(
        stack,
        *("--request-rate", "5", "--num-prompts", "10", "--input-tokens", "60", "--output-tokens", "8"),
        *("--slo", "e2e:100s", "--seed", "3"),
    )
    (level,) = report["levels"]
    assert level["good_share"] == 1.0
    assert level["goodput_requests_s"] == pytest.approx(level["requests_s"])
    assert "5/s" in output


def test_waves_have_the_engines_own_rates(stack: RunningStack) -> None:
    report, output = bench(
        stack,
        *("--waves", "--concurrency", "2", "--num-prompts", "4", "--input-tokens", "60"),
        *("--output-tokens", "60"),
    )
    (level,) = report["levels"]
    assert level["prefill_tok_s"] > 0
    assert level["decode_tok_s"] > level["output_tok_s"] * 0.5
    assert "decode" in output


def test_a_data_set_of_conversations(stack: RunningStack, tmp_path: Path) -> None:
    path = tmp_path / "prompts.jsonl"
    questions = ["What is the capital of France?", "你好", "Count from 1 to 10."]
    lines = [json.dumps({"messages": [{"role": "user", "content": text}]}) for text in questions]
    path.write_text("\n".join(lines), encoding="utf-8")
    report, _ = bench(
        stack, "--dataset", str(path), "--no-ignore-eos", "--concurrency", "3", "--num-prompts", "6"
    )
    (level,) = report["levels"]
    assert level["succeeded"] == 6
    assert level["output_tokens"] < 6 * 60  # the answers ended by themselves
