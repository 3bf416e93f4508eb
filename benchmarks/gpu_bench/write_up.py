"""The files that a run leaves: everything as JSON, and a page for people."""

from __future__ import annotations

import importlib.metadata
import json
import platform
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

from gpu_bench.figures import Results
from gpu_bench.goals import goal_rows
from gpu_bench.plain_checkout import ROOT

PACKAGES = ("torch", "triton", "numpy", "transformers", "flash-attn", "flash-attn-4", "grpcio", "protobuf")


def describe_machine(device: str) -> dict[str, Any]:
    """What was measured on, by whom, and when; asked once, in a process that may have the GPU."""
    import torch

    found: dict[str, Any] = {
        "date": time.strftime("%Y-%m-%d %H:%M UTC", time.gmtime()),
        "command": " ".join(["python3", *sys.argv]),
        "python": platform.python_version(),
        "commit": _output(["git", "-C", str(ROOT), "rev-parse", "--short", "HEAD"]),
        "packages": {name: version for name in PACKAGES if (version := _version(name))},
        "device": "cpu",
    }
    if device != "cpu":
        properties = torch.cuda.get_device_properties(0)
        found |= {
            "device": properties.name,
            "multiprocessors": properties.multi_processor_count,
            "memory_gib": round(properties.total_memory / 2**30, 1),
            "cuda": torch.version.cuda,
            "driver": _output(["nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader"]),
        }
    return found


def file_name(machine: dict[str, Any]) -> str:
    """Return the name of both files: nvidia-h200."""
    return "-".join("".join(c if c.isalnum() else " " for c in str(machine["device"])).lower().split())


def write_results(folder: Path, machine: dict[str, Any], results: Results) -> None:
    """Write both files, whole or not at all."""
    folder.mkdir(parents=True, exist_ok=True)
    name = file_name(machine)
    _replace(folder / f"{name}.json", json.dumps(as_json(machine, results), indent=1) + "\n")
    _replace(folder / f"{name}.md", as_page(machine, results))


def as_json(machine: dict[str, Any], results: Results) -> dict[str, Any]:
    """Everything."""
    return {
        "machine": machine,
        "figures": results.figures,
        "checks": {"passed": len(results.checks) - len(results.wrong), "wrong": results.wrong},
        "all_checks": results.checks,
        "tables": results.tables,
        "notes": results.notes,
        "sections": results.sections,
    }


def as_page(machine: dict[str, Any], results: Results) -> str:
    """The page: goals, checks, sections, all figures."""
    versions = ", ".join(f"{name} {version}" for name, version in machine["packages"].items())
    lines = [
        f"# {machine['device']}",
        "",
        f"{machine['date']}, commit {machine['commit']}, Python {machine['python']}, {versions}"
        + (f", CUDA {machine['cuda']}, driver {machine['driver']}" if "cuda" in machine else ""),
        "",
        f"`{machine['command']}`",
        "",
        *_table(["figure", "RustInfer published", "goal", "measured", "reached"], goal_rows(results)),
        "## Checks",
        "",
        f"{len(results.checks) - len(results.wrong)} of {len(results.checks)} agree with their reference.",
        "",
    ]
    if results.wrong:
        lines += _table(["wrong", "found"], [[name, detail] for name, detail in results.wrong])
    rows = [
        [name, state, f"{seconds:.0f}", detail.replace("\n", " ")[-300:]]
        for name, (state, detail, seconds) in results.sections.items()
    ]
    lines += ["## Sections", "", *_table(["section", "ended", "s", ""], rows)]
    for title, header, cells in results.tables:
        lines += [f"## {title}", "", *_table(header, cells)]
    if results.notes:
        lines += ["## Notes", "", *(f"- {note}" for note in results.notes), ""]
    lines += [
        "## All figures",
        "",
        *_table(["figure", ""], [[n, str(v)] for n, v in results.figures.items()]),
    ]
    return "\n".join(lines)


def _table(header: list[str], rows: list[list[str]]) -> list[str]:
    cells = [[cell.replace("|", "\\|") for cell in row] for row in (header, *rows)]
    lines = ["| " + " | ".join(row) + " |" for row in cells]
    return [lines[0], "|" + "---|" * len(header), *lines[1:], ""]


def _replace(path: Path, text: str) -> None:
    unfinished = path.with_suffix(path.suffix + ".tmp")
    unfinished.write_text(text, encoding="utf-8")
    unfinished.replace(path)


def _version(name: str) -> str:
    try:
        return importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        return ""


def _output(command: list[str]) -> str:
    try:
        return subprocess.run(command, capture_output=True, text=True, timeout=10, check=False).stdout.strip()
    except (OSError, subprocess.TimeoutExpired):
        return ""
