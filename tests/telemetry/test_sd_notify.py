"""What a service manager is told, read from a real datagram socket."""

from __future__ import annotations

import asyncio
import os
import socket
from collections.abc import Iterator
from pathlib import Path

import pytest

from rhizome_telemetry.sd_notify import ServiceManager


@pytest.fixture(params=["path", "abstract"])
def manager_socket(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[tuple[socket.socket, str]]:
    """A manager's socket, and what it would put into `NOTIFY_SOCKET`."""
    name = str(tmp_path / "n") if request.param == "path" else f"@rhizome-test-{os.getpid()}"
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as receiver:
        receiver.bind(name.replace("@", "\0", 1))
        receiver.settimeout(10)
        yield receiver, name


async def told(receiver: socket.socket) -> list[str]:
    return (await asyncio.to_thread(receiver.recv, 4096)).decode().split("\n")


async def test_a_service_is_started_once_it_serves(manager_socket: tuple[socket.socket, str]) -> None:
    receiver, name = manager_socket
    manager = ServiceManager({"NOTIFY_SOCKET": name})
    serving, status = False, "loading a\nmodel"
    manager.follow(lambda: serving, lambda: status)
    assert await told(receiver) == ["STATUS=loading a model"]
    serving, status = True, "serving"
    assert await told(receiver) == ["READY=1", "STATUS=serving"]
    serving, status = False, "the core is gone"
    assert await told(receiver) == ["STATUS=the core is gone"]
    serving = True
    manager.stopping()
    manager.stopping()
    assert await told(receiver) == ["STOPPING=1", "STATUS=draining"]
    receiver.settimeout(1.5)  # longer than it looks away
    with pytest.raises(TimeoutError):
        await told(receiver)


async def test_signs_of_life_come_in_time(manager_socket: tuple[socket.socket, str]) -> None:
    receiver, name = manager_socket
    environment = {"NOTIFY_SOCKET": name, "WATCHDOG_USEC": "400000", "WATCHDOG_PID": str(os.getpid())}
    manager = ServiceManager(environment)
    manager.follow(lambda: True, lambda: "serving")
    received = [line for _ in range(4) for line in await told(receiver)]
    assert received.count("WATCHDOG=1") == 3
    assert "READY=1" in received


async def test_another_process_is_watched(manager_socket: tuple[socket.socket, str]) -> None:
    receiver, name = manager_socket
    manager = ServiceManager({"NOTIFY_SOCKET": name, "WATCHDOG_USEC": "1000", "WATCHDOG_PID": "1"})
    manager.beat()
    manager.follow(lambda: True, lambda: "serving")
    assert await told(receiver) == ["READY=1", "STATUS=serving"]


@pytest.mark.parametrize("address", ["", "/nowhere/at/all", "@nobody-listens-there"])
async def test_nobody_who_listens_is_no_problem(address: str) -> None:
    manager = ServiceManager({"NOTIFY_SOCKET": address, "WATCHDOG_USEC": "not a number"})
    manager.follow(lambda: True, lambda: "serving")
    await asyncio.sleep(0)
    manager.beat()
    manager.stopping()
