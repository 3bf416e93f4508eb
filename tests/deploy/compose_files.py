"""The files of `deploy/compose`, as tests read them."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import yaml

COMPOSE = Path(__file__).resolve().parents[2] / "deploy" / "compose"
STACK = "compose.yaml"
OVERLAYS = ("compose.keys.yaml", "compose.gpu.yaml", "compose.tls.yaml", "compose.observability.yaml")
LLAMACPP = "compose.llamacpp.yaml"
ALL = (STACK, *OVERLAYS, LLAMACPP)
_VARIABLE = re.compile(r"\$\{(\w+)(?::-([^}]*))?\}")


def read(name: str) -> dict[str, Any]:
    """One file, with anchors and merges resolved and variables as they stand."""
    document = yaml.safe_load((COMPOSE / name).read_text())
    assert isinstance(document, dict)
    return document


def services(name: str) -> Iterator[tuple[str, dict[str, Any]]]:
    """Services of one file with every variable at its default."""
    for service, content in read(name)["services"].items():
        yield service, with_defaults(content)


def whole(*names: str) -> dict[str, dict[str, Any]]:
    """Services of several files put together as compose does it, as far as these files need it."""
    found: dict[str, dict[str, Any]] = {}
    for name in names:
        for service, content in services(name):
            merged = found.setdefault(service, {})
            for key, value in content.items():
                old = merged.get(key)
                if isinstance(value, dict) and isinstance(old, dict):
                    merged[key] = {**old, **value}
                elif key in ("ports", "volumes", "networks") and isinstance(old, list):
                    merged[key] = [*old, *value]
                else:
                    merged[key] = value
    return found


def with_defaults(value: Any) -> Any:
    """Every `${NAME:-default}` replaced by its default."""
    return with_values(value, {})


def with_values(value: Any, values: Mapping[str, str]) -> Any:
    """Every `${NAME:-default}` replaced by its value, or by its default where it has none."""
    if isinstance(value, dict):
        return {key: with_values(one, values) for key, one in value.items()}
    if isinstance(value, list):
        return [with_values(one, values) for one in value]
    if not isinstance(value, str):
        return value
    return _VARIABLE.sub(lambda match: values.get(match[1]) or match[2] or "", value)


def variables(name: str) -> dict[str, set[str]]:
    """Variables of one file → their defaults there; comments do not count."""
    found: dict[str, set[str]] = {}
    for line in (COMPOSE / name).read_text().splitlines():
        for variable, default in _VARIABLE.findall(line.partition(" #")[0] if "#" in line else line):
            found.setdefault(variable, set()).add(default)
    return found


def seconds(duration: str) -> float:
    """Such as `45s` or `1m30s`."""
    units = {"h": 3600, "m": 60, "s": 1}
    return sum(float(number) * units[unit] for number, unit in re.findall(r"([\d.]+)([hms])", duration))
