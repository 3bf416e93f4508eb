"""`rhizome doctor`: what this machine offers to Rhizome, and what is missing."""

from __future__ import annotations

import importlib.util
import json
import os
import platform
import resource
import shutil
import subprocess
import sys
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import psutil
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from rhizome_launcher.plan import ENGINE_PORT, PROXY_PORT
from rhizome_launcher.ports import port_is_free

HARDWARE_TIMEOUT_S = 300
OPEN_FILES_WANTED = 4096
REQUIRED = {
    "rhizome_gateway": "make setup, or pip install -e services/gateway, in Rhizome's repository",
    "rhizome_proxy": "make setup, or pip install -e services/proxy, in Rhizome's repository",
    "rhizome_engine": "make setup, or pip install -e services/engine, in Rhizome's repository",
}
OPTIONAL = {
    "openai": "the client that `rhizome demo` asks with: pip install openai",
}
CPU_FLAGS = ("avx2", "avx512f", "avx512_vnni", "avx512_bf16", "amx_int8", "amx_bf16")


@dataclass(frozen=True, slots=True)
class Report:
    """What was found.

    Attributes:
        python: version and platform.
        device: where the engine would run: `cpu`, `cuda:0`.
        dtype: in which type the weights would be held.
        kernels: what would compute, and why.
        attention: the attention back end, and why.
        devices: CUDA devices with their memory.
        cpu: cores and the instruction sets that matter.
        memory: bytes of main memory, total and available.
        ports: whether each default port is free.
        missing: what keeps Rhizome from running, with the remedy.
        optional: what would make it better, with the remedy.
    """

    python: str
    device: str
    dtype: str
    kernels: str
    attention: str
    devices: list[dict[str, Any]]
    cpu: dict[str, Any]
    memory: dict[str, int]
    ports: dict[str, bool]
    missing: list[str] = field(default_factory=list)
    optional: list[str] = field(default_factory=list)


def examine() -> Report:
    """Look at this machine; starts one short process, because only the engine may load torch."""
    missing = [f"{module}: {remedy}" for module, remedy in REQUIRED.items() if not _installed(module)]
    optional = [f"{module}: {remedy}" for module, remedy in OPTIONAL.items() if not _installed(module)]
    hardware: dict[str, Any] = {}
    if _installed("rhizome_engine"):
        # On a terminal only; elsewhere it prints nothing.
        with Console(stderr=True).status("asking the engine; the first time it compiles its CPU kernels"):
            hardware, problem = _engine_hardware()
        if problem:
            missing.append(problem)
    soft_limit, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft_limit < OPEN_FILES_WANTED:
        optional.append(
            f"open files: the limit is {soft_limit}; ulimit -n {OPEN_FILES_WANTED} allows more clients"
        )
    if shutil.which("nvidia-smi") and hardware.get("device") == "cpu":
        optional.append(
            "CUDA: there is an NVIDIA driver, but torch has no CUDA; install a CUDA build of torch"
        )
    memory = psutil.virtual_memory()
    return Report(
        python=f"{platform.python_version()} on {platform.platform()}",
        device=hardware.get("device", "unknown"),
        dtype=hardware.get("dtype", "unknown"),
        kernels=hardware.get("kernels", "unknown"),
        attention=hardware.get("attention", "unknown"),
        devices=hardware.get("devices", []),
        cpu={"cores": os.cpu_count(), "model": _cpu_model(), "flags": _cpu_flags()},
        memory={"total_bytes": memory.total, "available_bytes": memory.available},
        ports={
            name: port_is_free("127.0.0.1", port)
            for name, port in (
                ("gateway 8000", 8000),
                (f"proxy {PROXY_PORT}", PROXY_PORT),
                (f"engine {ENGINE_PORT}", ENGINE_PORT),
            )
        },
        missing=missing,
        optional=optional,
    )


def print_report(report: Report, *, as_json: bool) -> None:
    """Print the report for a person, or as one JSON object."""
    if as_json:
        print(json.dumps(asdict(report)))
        return
    console = Console()
    table = Table(show_header=False, box=None, padding=(0, 2, 0, 0))
    table.add_row("python", report.python)
    table.add_row(
        "cpu", f"{report.cpu['cores']} cores, {report.cpu['model']}, {' '.join(report.cpu['flags'])}"
    )
    gib = 1 << 30
    available, total = report.memory["available_bytes"] / gib, report.memory["total_bytes"] / gib
    table.add_row("memory", f"{available:.1f} GiB available of {total:.1f}")
    for device in report.devices:
        table.add_row("gpu", f"{device['name']}, {device['total_bytes'] / gib:.1f} GiB")
    table.add_row("device", report.device)
    table.add_row("dtype", report.dtype)
    table.add_row("kernels", report.kernels)
    table.add_row("attention", report.attention)
    for name, free in report.ports.items():
        table.add_row(f"port {name}", "free" if free else "[yellow]taken[/yellow]")
    for text in report.missing:
        table.add_row("[red]missing[/red]", escape(text))
    for text in report.optional:
        table.add_row("[yellow]could have[/yellow]", escape(text))
    if not report.missing:
        table.add_row("[green]missing[/green]", "nothing")
    console.print(table, highlight=False)


def _installed(module: str) -> bool:
    return importlib.util.find_spec(module) is not None


def _engine_hardware() -> tuple[dict[str, Any], str]:
    """Ask the engine what it would choose; return that, or what kept it from answering."""
    try:
        result = subprocess.run(
            [sys.executable, "-m", "rhizome_engine.hardware"],
            capture_output=True,
            text=True,
            timeout=HARDWARE_TIMEOUT_S,
            check=True,
        )
        return json.loads(result.stdout), ""
    except subprocess.CalledProcessError as error:
        lines = error.stderr.strip().splitlines() or ["no output"]
        return {}, f"torch: the engine could not load it ({lines[-1]})"
    except (subprocess.TimeoutExpired, ValueError) as error:
        return {}, f"torch: the engine did not say what it would use ({error})"


def _cpu_info() -> str:
    try:
        return Path("/proc/cpuinfo").read_text()
    except OSError:
        return ""


def _cpu_model() -> str:
    for line in _cpu_info().splitlines():
        if line.startswith("model name"):
            return line.partition(":")[2].strip()
    return platform.processor() or platform.machine()


def _cpu_flags() -> list[str]:
    for line in _cpu_info().splitlines():
        if line.startswith("flags"):
            flags = set(line.partition(":")[2].split())
            return [flag for flag in CPU_FLAGS if flag in flags]
    return []
