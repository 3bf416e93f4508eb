"""`rhizome bench serve` as a person types it, against a server that behaves and one that does not."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import sys
from pathlib import Path
from typing import Any

import pytest
from tests.launcher.bench.conftest import TEMPLATE_TOKENS, Behaviour, PuppetServer, eventually

COMMAND = [sys.executable, "-m", "rhizome_launcher", "bench", "serve"]


async def start(*arguments: str) -> asyncio.subprocess.Process:
    return await asyncio.create_subprocess_exec(
        *COMMAND,
        *arguments,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE,
        env={**os.environ, "COLUMNS": "140", "http_proxy": "http://127.0.0.1:9"},
    )


async def bench(*arguments: str) -> tuple[int | None, str, str]:
    process = await start(*arguments)
    output, errors = await asyncio.wait_for(process.communicate(), 60)
    return process.returncode, output.decode(), errors.decode()


def last_json(output: str) -> dict[str, Any]:
    report = json.loads(output.splitlines()[-1])
    assert isinstance(report, dict)
    return report


async def test_a_table_for_people_and_one_json_line_for_machines(puppet: PuppetServer) -> None:
    puppet.behave = lambda index: Behaviour(gap_s=0.01)
    code, output, errors = await bench(
        *("--base-url", puppet.url, "--concurrency", "1,4", "--num-prompts", "8", "--input-tokens", "57"),
        *("--output-tokens", "6", "--slo", "ttft:5s", "--json", "-"),
    )
    assert (code, errors) == (0, "")
    for heading in ("streams", "output tok/s", "goodput/s", "TTFT", "ITL", "TPOT", "end to end", "p99"):
        assert heading in output
    report = last_json(output)
    assert report["model"] == "puppet"
    assert [level["concurrency"] for level in report["levels"]] == [1, 4]
    for level in report["levels"]:
        assert level["succeeded"] == 8
        assert level["prompt_tokens"] == 8 * 57
        assert level["output_tokens"] == 8 * 6
        assert level["good_share"] == 1.0
        assert level["output_tok_s"] == pytest.approx(48 / level["duration_s"], rel=1e-4)
        assert 0 <= level["ttft_ms_p50"] <= level["ttft_ms_p99"] <= level["e2e_ms_p99"]
        assert level["itl_ms_p50"] >= 9
        assert level["tpot_ms_mean"] >= 19 / 5
        after_first_ms = level["e2e_ms_mean"] - level["ttft_ms_mean"]
        assert level["tpot_ms_mean"] == pytest.approx(after_first_ms / 5, rel=1e-4)
    assert puppet.most_open == 4
    # Two requests to calibrate, then for each level two to warm up.
    assert len(puppet.bodies) == 2 + 2 * (2 + 8)


async def test_prompts_differ_but_for_what_they_share(puppet: PuppetServer) -> None:
    tokens = str(TEMPLATE_TOKENS + 2 * 30)
    code, _, _ = await bench(
        *("--base-url", puppet.url, "--concurrency", "2", "--num-prompts", "6", "--warmup", "0"),
        *("--input-tokens", tokens, "--shared-prefix-tokens", "40", "--seed", "5"),
    )
    assert code == 0
    prompts = [body["messages"][0]["content"].split() for body in puppet.bodies[2:]]
    assert {len(prompt) for prompt in prompts} == {30}
    assert len({tuple(prompt[:20]) for prompt in prompts}) == 1
    assert len({tuple(prompt[20:24]) for prompt in prompts}) == 6


async def test_fields_that_some_servers_do_not_know_can_be_left_out(puppet: PuppetServer) -> None:
    options = ("--base-url", puppet.url, "--concurrency", "1", "--num-prompts", "1", "--warmup", "0")
    await bench(*options, "--seed", "3", "--send-seed", "--temperature", "0.7")
    assert puppet.bodies[-1]["ignore_eos"] is True
    assert (puppet.bodies[-1]["seed"], puppet.bodies[-1]["temperature"]) == (3, 0.7)
    await bench(*options, "--no-ignore-eos", "--endpoint", "completions")
    assert not {"ignore_eos", "seed", "messages"} & set(puppet.bodies[-1])


async def test_a_data_set_is_sent_as_it_is(puppet: PuppetServer, tmp_path: Path) -> None:
    path = tmp_path / "prompts.jsonl"
    path.write_text(
        '{"prompt": "first", "max_tokens": 3}\n{"messages": [{"role": "user", "content": "second"}]}\n'
    )
    code, output, _ = await bench(
        *("--base-url", puppet.url, "--model", "mine", "--dataset", str(path), "--concurrency", "1"),
        *("--num-prompts", "3", "--warmup", "0", "--output-tokens", "8", "--json", "-"),
    )
    assert code == 0
    assert [body["messages"][0]["content"] for body in puppet.bodies] == ["first", "second", "first"]
    assert [body["max_tokens"] for body in puppet.bodies] == [3, 8, 3]
    assert {body["model"] for body in puppet.bodies} == {"mine"}
    assert last_json(output)["input_tokens"] is None


async def test_failures_are_counted_by_kind_and_shown_once(puppet: PuppetServer) -> None:
    first = 2  # after calibration
    puppet.behave = lambda index: (
        Behaviour(status=500) if index >= first and index % 2 else Behaviour(finish=index != first + 2)
    )
    code, output, _ = await bench(
        *(
            "--base-url",
            puppet.url,
            "--concurrency",
            "1",
            "--num-prompts",
            "6",
            "--warmup",
            "0",
            "--json",
            "-",
        ),
    )
    assert code == 0
    (level,) = last_json(output)["levels"]
    assert level["errors"] == {"http_500": 3, "truncated": 1}
    assert (level["succeeded"], level["failed"]) == (2, 4)
    assert '3 x http_500: {"error": {"message": "no [such] luck"}}' in output


async def test_all_failed_is_exit_status_1(puppet: PuppetServer) -> None:
    puppet.behave = lambda index: Behaviour() if index < 2 else Behaviour(status=503)
    code, output, errors = await bench("--base-url", puppet.url, "--concurrency", "2", "--json", "-")
    assert code == 1
    (level,) = last_json(output)["levels"]
    assert level["succeeded"] == 0 and level["errors"] == {"http_503": 16}
    assert level["ttft_ms_p50"] is None and level["output_tok_s"] == 0
    assert "Traceback" not in errors


async def test_an_open_loop_sends_at_its_rate(puppet: PuppetServer) -> None:
    puppet.behave = lambda index: Behaviour(first_s=0.3)
    code, output, _ = await bench(
        *("--base-url", puppet.url, "--request-rate", "40", "--num-prompts", "40", "--burstiness", "1000"),
        *("--seed", "1", "--json", "-"),
    )
    assert code == 0
    (level,) = last_json(output)["levels"]
    assert level["request_rate_s"] == 40
    # 39 gaps of 25 ms, and the last answer.
    assert 1.0 < level["duration_s"] < 2.5
    assert 6 < puppet.most_open <= 40


async def test_ctrl_c_shows_what_is_there_so_far(puppet: PuppetServer) -> None:
    puppet.behave = lambda index: Behaviour(first_s=0.0 if index < 8 else 60.0)
    process = await start("--base-url", puppet.url, "--concurrency", "3", "--warmup", "0", "--json", "-")
    await eventually(lambda: len(puppet.bodies) == 8 + 3 and puppet.open == 3)
    process.send_signal(signal.SIGINT)
    output, errors = await asyncio.wait_for(process.communicate(), 20)
    assert process.returncode == 130
    assert b"Traceback" not in errors
    assert b"interrupted" in output
    report = last_json(output.decode())
    assert report["interrupted"] is True
    (level,) = report["levels"]
    assert (level["succeeded"], level["unfinished"]) == (6, 3)  # two of the eight calibrated


@pytest.mark.parametrize(
    ("arguments", "text"),
    [
        (["--concurrency", "1", "--request-rate", "2"], "not both"),
        (["--waves", "--request-rate", "2"], "--waves is a closed loop"),
        (["--concurrency", "1,two"], "--concurrency takes positive integers, such as 1,8,32, not '1,two'"),
        (["--concurrency", "0"], "--concurrency takes positive integers"),
        (["--request-rate", "inf"], "--request-rate takes positive numbers"),
        (["--slo", "soon"], "--slo does not understand 'soon'"),
        (["--shared-prefix-tokens", "200"], "must be less than --input-tokens"),
        (["--base-url", "http://127.0.0.1:9"], "no server answers at http://127.0.0.1:9/v1/models"),
        (["--model", "m", "--dataset", "no[/such]file"], "the data set no[/such]file cannot be read"),
    ],
)
async def test_what_cannot_be_measured_is_explained(arguments: list[str], text: str) -> None:
    code, _, errors = await bench(*arguments)
    assert code == 1
    assert errors.startswith("error: ")
    assert text in errors
    assert "Traceback" not in errors


async def test_a_report_that_cannot_be_written_is_explained(puppet: PuppetServer, tmp_path: Path) -> None:
    code, output, errors = await bench(
        *("--base-url", puppet.url, "--concurrency", "1", "--num-prompts", "1"),
        *("--json", str(tmp_path / "nowhere" / "report.json")),
    )
    assert code == 1
    assert "cannot be written" in errors
    assert "TTFT" in output
