"""SECURITY.md lists every listener that settings can open, with its default."""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path

import pytest
from pydantic_settings import BaseSettings

from rhizome_engine.settings import EngineSettings
from rhizome_gateway.settings import GatewaySettings
from rhizome_proxy.settings import ProxySettings

PAGE = Path(__file__).parents[2] / "SECURITY.md"
SERVICES: Mapping[str, type[BaseSettings]] = {
    "gateway": GatewaySettings,
    "proxy": ProxySettings,
    "engine": EngineSettings,
}
_LISTENS = re.compile(r"(^|_)(port|endpoint)$")


def rows() -> dict[tuple[str, str], str]:
    """Defaults by process and setting, as the page has them."""
    table = re.findall(r"^\| (\w+) \| [^|]+ \| `--([a-z-]+)` \| ([^|]+) \|", PAGE.read_text(), re.MULTILINE)
    return {(process, setting.replace("-", "_")): default.strip() for process, setting, default in table}


def default_of(settings: type[BaseSettings], name: str) -> str:
    """How the page writes a default: `off`, or host and port."""
    fields = settings.model_fields
    value = fields[name].default
    if not value:
        return "off"
    host = fields[name.replace("port", "host")].default
    return f"{host}:{value}"


@pytest.mark.parametrize("process", SERVICES)
def test_every_listener_is_on_the_page(process: str) -> None:
    known = rows()
    listeners = [name for name in SERVICES[process].model_fields if _LISTENS.search(name)]
    assert len(listeners) >= 2
    missing = [name for name in listeners if (process, name) not in known]
    assert not missing, f"SECURITY.md does not say who may reach these of the {process}: {missing}"


def test_the_page_has_no_listener_that_is_gone() -> None:
    gone = [row for row in rows() if row[1] not in SERVICES[row[0]].model_fields]
    assert not gone


def test_the_defaults_on_the_page_are_those_of_the_settings() -> None:
    wrong = {
        row: (told, default_of(SERVICES[row[0]], row[1]))
        for row, told in rows().items()
        if row != ("engine", "core_endpoint") and told != default_of(SERVICES[row[0]], row[1])
    }
    assert not wrong


@pytest.mark.parametrize("process", SERVICES)
def test_by_default_nothing_listens_beyond_loopback(process: str) -> None:
    fields = SERVICES[process].model_fields
    hosts = {name: field.default for name, field in fields.items() if re.search(r"(^|_)host$", name)}
    assert hosts and set(hosts.values()) == {"127.0.0.1"}
