"""One stack for all blows, and a table of what they did at the end."""

from __future__ import annotations

import asyncio
import os
import resource
import time
from collections.abc import Iterator
from typing import Any

import pytest
from tests.chaos.asking import Traffic
from tests.chaos.stack import WholeStack

FULL = os.environ.get("RHIZOME_CHAOS") == "full"
_ROWS = pytest.StashKey[list[tuple[str, float, str]]]()


class Report:
    """Figures of one blow, for the table.

    Attributes:
        figures: by name, as text.
    """

    def __init__(self) -> None:
        self.figures: dict[str, object] = {}

    def __setitem__(self, name: str, value: object) -> None:
        """Note a figure."""
        self.figures[name] = value


def pytest_configure(config: pytest.Config) -> None:
    config.stash[_ROWS] = []


@pytest.fixture
def report(request: pytest.FixtureRequest) -> Iterator[Report]:
    """Takes the figures of a blow; they are printed after all tests."""
    told, began_s = Report(), time.monotonic()
    yield told
    name = request.node.name.removeprefix("test_").replace("_", " ")
    figures = ", ".join(f"{key} {value}" for key, value in told.figures.items())
    request.config.stash[_ROWS].append((name, time.monotonic() - began_s, figures))


def pytest_terminal_summary(terminalreporter: Any, config: pytest.Config) -> None:
    rows = config.stash.get(_ROWS, [])
    if not rows or not (FULL or config.option.verbose > 0):
        return
    terminalreporter.section("chaos")
    for name, seconds, figures in rows:
        terminalreporter.write_line(f"{name:<64.64} {seconds:6.1f} s  {figures}")


@pytest.fixture(scope="session")
def stack(tmp_path_factory: pytest.TempPathFactory) -> Iterator[WholeStack]:
    """Whatever a blow does to it, it has to be whole again afterwards, without being started anew."""
    _, most_files = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (most_files, most_files))  # the processes inherit it
    with WholeStack(tmp_path_factory.mktemp("whole")) as whole:
        asyncio.run(_warm_up(whole))
        yield whole


async def _warm_up(whole: WholeStack) -> None:
    """Let everything be opened and loaded once that stays: what is compared is what comes on top."""
    async with Traffic(whole, 20.0) as traffic:
        await traffic.count_until(20)
