"""Orders over the control socket."""

from __future__ import annotations

import asyncio
import socket
from pathlib import Path
from typing import Any

import pytest

from rhizome_launcher.background.control import ControlError, Note, send_order, serve_control


async def order(asked: dict[str, Any], note: Note) -> None:
    note(f"doing {asked['command']}")
    if asked["command"] != "good":
        raise ControlError("that is not good")


async def give(path: Path, command: str) -> list[str]:
    notes: list[str] = []
    await asyncio.to_thread(send_order, path, {"command": command}, notes.append, 10.0)
    return notes


@pytest.mark.parametrize("depth", [1, 12], ids=["short", "longer than an address may be"])
async def test_an_order_is_carried_out_or_refused(tmp_path: Path, depth: int) -> None:
    folder = tmp_path.joinpath(*["a-folder-with-a-long-name"] * depth)
    folder.mkdir(parents=True)
    path = folder / "control.sock"
    for _ in range(2):  # the second one finds the socket of the first
        server = await serve_control(path, order)
        assert await give(path, "good") == ["doing good"]
        with pytest.raises(ControlError, match="that is not good"):
            await give(path, "bad")
        server.close()


async def test_nobody_there_is_told(tmp_path: Path) -> None:
    with pytest.raises(ControlError, match="does not answer"):
        await give(tmp_path / "control.sock", "good")


async def test_one_that_says_nothing_is_given_up(tmp_path: Path) -> None:
    path = tmp_path / "control.sock"
    with socket.socket(socket.AF_UNIX) as silent:
        silent.bind(str(path))
        silent.listen()
        with pytest.raises(ControlError, match="does not answer"):
            await asyncio.to_thread(send_order, path, {"command": "good"}, print, 0.1)


async def test_nonsense_is_refused(tmp_path: Path) -> None:
    server = await serve_control(tmp_path / "control.sock", order)
    reader, writer = await asyncio.open_unix_connection(tmp_path / "control.sock")
    writer.write(b"nonsense\n")
    assert b'"done": true, "problem": "Expecting value' in await reader.read()
    writer.close()
    server.close()
