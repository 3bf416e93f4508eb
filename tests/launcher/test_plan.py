"""What a stack consists of, from options and from a file."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest

from rhizome_launcher.plan import STACK_MARK, EngineGroup, StackError, StackPlan, StackSettings, make_plan
from rhizome_launcher.stack_file import read_stack_file

BASE = StackSettings(keep_cores=True, drain_timeout_s=7)


@pytest.fixture
def models(tmp_path: Path) -> Path:
    for name in ("llama", "qwen"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "config.json").write_text("{}")
    return tmp_path


@pytest.fixture
def planned() -> Iterator[list[StackPlan]]:
    plans: list[StackPlan] = []
    yield plans
    for plan in plans:
        if plan.sockets is not None:
            shutil.rmtree(plan.sockets)


def options(arguments: tuple[str, ...]) -> dict[str, str]:
    return dict(zip(arguments[::2], arguments[1::2], strict=True))


def test_one_engine_is_reached_past_its_front(models: Path, planned: list[StackPlan]) -> None:
    plan = make_plan(StackSettings(model=models / "llama", port=18800, strict_port=False))
    planned.append(plan)
    engine, gateway = plan.services
    assert (engine.name, engine.kind, engine.module) == ("engine", "engine", "rhizome_engine")
    endpoint = options(engine.arguments)["--core-endpoint"]
    assert plan.sockets is not None
    assert endpoint == f"ipc://{plan.sockets}/0.ipc" and plan.sockets.stat().st_mode & 0o777 == 0o700
    assert options(gateway.arguments)["--engine"] == endpoint
    assert gateway.address == plan.url and plan.models == ("llama",)
    assert {service.environment[STACK_MARK] for service in plan.services} == {plan.mark}
    assert engine.environment["RHIZOME_ENGINE_DRAIN_TIMEOUT_S"] == "10"


def test_two_engines_stand_behind_a_proxy(models: Path, planned: list[StackPlan]) -> None:
    plan = make_plan(StackSettings(model=models / "llama", engines=2, strict_port=False))
    planned.append(plan)
    assert [service.name for service in plan.services] == ["engine-0", "engine-1", "proxy", "gateway"]
    assert options(plan.services[2].arguments)["--backends"] == ",".join(plan.addresses("engine"))
    assert options(plan.services[3].arguments)["--engine"] == plan.services[2].address
    assert plan.services[0].environment["RHIZOME_ENGINE_MEMORY_SHARE"] == "0.5"
    assert len({service.address for service in plan.services}) == 4
    assert plan.sockets is None
    kept = make_plan(StackSettings(model=models / "llama", engines=2, strict_port=False, keep_cores=True))
    planned.append(kept)
    endpoints = [options(service.arguments)["--core-endpoint"] for service in kept.services[:2]]
    assert endpoints == [f"ipc://{kept.sockets}/{index}.ipc" for index in range(2)]


def test_several_models_have_a_gateway_each_and_a_router(models: Path, planned: list[StackPlan]) -> None:
    groups = (EngineGroup(models / "llama", 2), EngineGroup(models / "qwen"))
    plan = make_plan(StackSettings(groups=groups, strict_port=False))
    planned.append(plan)
    assert [service.name for service in plan.services] == [
        "llama.engine-0", "llama.engine-1", "qwen.engine", "llama.proxy", "llama.gateway",
        "qwen.gateway", "router",
    ]  # fmt: skip
    router = plan.services[-1]
    assert router.address == plan.url and plan.models == ("llama", "qwen")
    assert options(router.arguments)["--backends"] == ",".join(plan.addresses("gateway"))
    assert len({service.address for service in plan.services}) == 7


def test_engines_of_one_name_belong_together(models: Path, planned: list[StackPlan]) -> None:
    name = ("--served-model-name", "best")
    groups = (
        EngineGroup(models / "llama", arguments=name),
        EngineGroup(models / "qwen", arguments=("--served-model-name=best",)),
    )
    plan = make_plan(StackSettings(groups=groups, strict_port=False))
    planned.append(plan)
    assert [service.name for service in plan.services] == ["engine-0", "engine-1", "proxy", "gateway"]


@pytest.mark.parametrize(
    ("changes", "text"),
    [
        ({"host": "0.0.0.0"}, "serves this machine only"),
        ({"gateway_arguments": ("--keys-file", "keys.toml")}, "has no keys"),
    ],
)
def test_several_models_are_not_served_to_strangers(
    models: Path, changes: dict[str, object], text: str
) -> None:
    groups = (EngineGroup(models / "llama"), EngineGroup(models / "qwen"))
    with pytest.raises(StackError, match=text):
        make_plan(StackSettings(groups=groups, strict_port=False, **changes))  # type: ignore[arg-type]


def test_a_file_says_it_all(models: Path) -> None:
    file = models / "stack.toml"
    file.write_text(
        """
        port = 8123
        environment = { OTEL_SDK_DISABLED = "true" }
        [gateway.options]
        workers = 2
        strict_params = true
        allow-open = false
        [proxy]
        always = true
        [proxy.options]
        policy = "cost"
        [[engines]]
        model = "llama"
        count = 2
        [engines.options]
        max-step-tokens = 1024
        fairness = false
        [engines.environment]
        OMP_NUM_THREADS = "1"
        [[engines]]
        model = "/elsewhere/qwen"
        """
    )
    settings = read_stack_file(file, BASE)
    assert settings.groups == (
        EngineGroup(
            models / "llama",
            2,
            ("--max-step-tokens", "1024", "--fairness", "false"),
            {"OMP_NUM_THREADS": "1"},
        ),
        EngineGroup(Path("/elsewhere/qwen")),
    )
    assert settings.gateway_arguments == ("--workers", "2", "--strict-params", "--no-allow-open")
    assert settings.proxy_arguments == ("--policy", "cost")
    assert (settings.port, settings.proxy, settings.drain_timeout_s, settings.keep_cores) == (
        8123,
        True,
        7,
        True,
    )
    assert settings.environment == {"OTEL_SDK_DISABLED": "true"}


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ("engines = [", "is no TOML"),
        ("port = 8000", r"has no engines; add \[\[engines\]\]"),
        ('prot = 8000\n[[engines]]\nmodel = "llama"', "has no setting 'prot'; there are host, port"),
        ('port = true\n[[engines]]\nmodel = "llama"', "port = True is of the wrong type"),
        ('[[engines]]\nmodle = "llama"', r"\[\[engines\]\] number 1 has no setting 'modle'"),
        ("[[engines]]\ncount = 2", "number 1 has no model"),
        ('[[engines]]\nmodel = "llama"\n[engines.options]\nx = { y = 1 }', "x = .* is of the wrong type"),
        ('[[engines]]\nmodel = "llama"\n[engines.environment]\nX = 1', 'X must be a text, such as "1"'),
    ],
)  # fmt: skip
def test_a_wrong_file_is_explained(tmp_path: Path, text: str, problem: str) -> None:
    file = tmp_path / "stack.toml"
    file.write_text(text)
    with pytest.raises(StackError, match=problem):
        read_stack_file(file, BASE)


def test_a_file_that_is_not_there_is_explained(tmp_path: Path) -> None:
    with pytest.raises(StackError, match="cannot be read: No such file"):
        read_stack_file(tmp_path / "stack.toml", BASE)
