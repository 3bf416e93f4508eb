"""The engine's settings: command line, environment, defaults, and what is told to whoever gets them wrong."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path

import pytest

from rhizome_engine.core.process import scheduler_config
from rhizome_engine.scheduler.config import SchedulerConfig
from rhizome_engine.settings import CoreSettings, EngineSettings, core_arguments, parse_settings


@pytest.fixture(autouse=True)
def model(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    for variable in ("MODEL_PATH", "DEVICE", "RHIZOME_ENGINE_MODEL"):
        monkeypatch.delenv(variable, raising=False)
    folder = tmp_path / "tiny-llama"
    folder.mkdir()
    (folder / "config.json").write_text("{}")
    return folder


def parse(*arguments: str) -> EngineSettings:
    return parse_settings(EngineSettings, arguments, program="rhizome-engine")


def test_the_served_name_is_the_directorys_by_default(model: Path) -> None:
    assert parse("--model", str(model)).served_model_name == "tiny-llama"
    assert parse("--model", str(model), "--served-model-name", "x").served_model_name == "x"


def test_the_command_line_wins_over_the_environment(model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RHIZOME_ENGINE_PORT", "1")
    monkeypatch.setenv("RHIZOME_ENGINE_MAX_BATCH_SIZE", "9")
    settings = parse("--model", str(model), "--port", "2")
    assert (settings.port, settings.max_batch_size) == (2, 9)


def test_common_names_of_other_engines_are_accepted(model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MODEL_PATH", str(model))
    monkeypatch.setenv("DEVICE", "cuda:1")
    settings = parse()
    assert (settings.model, settings.device) == (model, "cuda:1")


def test_the_core_reads_what_the_front_hands_on(model: Path) -> None:
    settings = parse(
        *("--model", str(model), "--kv-memory", "64MiB", "--page-size", "32", "--port", "7"),
        *("--core-endpoint", "ipc:///run/x/core.ipc", "--orphan-grace-s", "2.5"),
        *("--fairness", "false", "--policy", "lpm", "--schedule-interval-ms", "1.5", "--overlap", "on"),
        *("--max-concurrent-requests", "64", "--max-pinned-tokens", "0", "--grammar-timeout-s", "0.5"),
    )
    received = parse_settings(CoreSettings, core_arguments(settings), program="core")
    assert received == CoreSettings(**{name: getattr(settings, name) for name in CoreSettings.model_fields})
    assert received.kv_memory == "64MiB"
    assert (received.fairness, received.policy, received.max_pinned_tokens) == (False, "lpm", 0)


def test_the_scheduler_is_given_every_setting_of_its_own(model: Path) -> None:
    given = {
        "max_batch_size": 3,
        "max_queue_size": 4,
        "max_concurrent_requests": 5,
        "max_step_tokens": 6,
        "max_chunk_tokens": 7,
        "max_partial_prefills": 8,
        "max_context_tokens": 9,
        "policy": "priority",
        "lpm_max_wait_s": 1.5,
        "fairness": False,
        "max_tenant_slowdown": 2.5,
        "eviction_policy": "lfu",
        "max_pinned_tokens": 11,
    }
    settings = CoreSettings(model=model, device="cpu", **given)
    assert asdict(scheduler_config(settings)) == {**given, "overlap": False}


@pytest.mark.parametrize(("choice", "overlap"), [("auto", False), ("off", False), ("on", True)])
def test_steps_overlap_on_a_cpu_only_when_asked_to(model: Path, choice: str, overlap: bool) -> None:
    settings = CoreSettings(model=model, device="cpu", overlap=choice)
    assert scheduler_config(settings).overlap is overlap


@pytest.mark.parametrize("name", ["mru", "no.such:module", "builtins:list"])
def test_an_eviction_policy_that_is_none_is_named_before_the_model_is_loaded(model: Path, name: str) -> None:
    with pytest.raises(ValueError, match=name):
        scheduler_config(CoreSettings(model=model, device="cpu", eviction_policy=name))


def test_a_slowdown_of_0_is_no_bound(model: Path) -> None:
    received = parse("--model", str(model), "--device", "cpu", "--max-tenant-slowdown", "0")
    assert scheduler_config(received).max_tenant_slowdown is None


def test_defaults_are_the_schedulers_own(model: Path) -> None:
    assert scheduler_config(CoreSettings(model=model, device="cpu")) == SchedulerConfig()


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--model", "/nowhere"], "no config.json"),
        ([], "--model"),
        (["--page-size", "17"], "--page-size"),
        (["--device", "tpu"], "--device"),
        (["--dtype", "int3"], "--dtype"),
        (["--port", "70000"], "--port"),
        (["--max-batch-size", "0"], "--max-batch-size"),
        (["--policy", "random"], "--policy"),
        (["--schedule-interval-ms", "-1"], "--schedule-interval-ms"),
        (["--metrics-port", "70000"], "--metrics-port"),
        (["--max-tenant-slowdown", "0.5"], "--max-tenant-slowdown"),
        (["--core-endpoint", "tcp://0.0.0.0:1"], "refused without CURVE keys"),
        (["--core-tcp-endpoint", "tcp://0.0.0.0:1"], "refused without CURVE keys"),
        (["--core-endpoint", "inproc://core"], "ipc:///run"),
        (["--core-endpoint", "ipc:///" + "x" * 120], "longer than"),
        (["--max-cache-tokens", "1", "--kv-memory", "1"], "not both"),
        (["--kv-memory", "0%"], "--kv-memory"),
        (["--kv-memory", "lots"], "a size such as 4GiB, or a share of what is left such as 60%"),
        (["--quantization", "int3"], "--quantization"),
        (["--kernels", "magic"], "--kernels"),
        (["--kv-cache-dtype", "int3"], "--kv-cache-dtype"),
        (["--nonsense", "1"], "--nonsense"),
    ],
)
def test_wrong_settings_end_with_a_line_that_names_them(
    model: Path, capsys: pytest.CaptureFixture[str], arguments: list[str], words: str
) -> None:
    given = arguments if not arguments or "--model" in arguments else ["--model", str(model), *arguments]
    with pytest.raises(SystemExit) as caught:
        parse(*given)
    assert caught.value.code == 2
    assert words in capsys.readouterr().err


def test_the_page_of_settings_names_every_one() -> None:
    page = (Path(__file__).parents[2] / "docs" / "engine-settings.md").read_text()
    missing = [name for name in EngineSettings.model_fields if f"`--{name.replace('_', '-')}`" not in page]
    assert not missing


def test_help_describes_every_setting(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as caught:
        parse("--help")
    assert caught.value.code == 0
    shown = capsys.readouterr().out
    assert all(f"--{name.replace('_', '-')}" in shown for name in EngineSettings.model_fields)
    assert all(field.description for field in EngineSettings.model_fields.values())
