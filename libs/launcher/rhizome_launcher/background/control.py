"""Orders to a supervisor: a line of JSON over a Unix socket, answered by lines until the last one.

order   {"command": "down", "timeout_s": 35.0}
answer  {"note": "stopping the gateway"} …   for people, as things happen
        {"done": true, "problem": ""}        the last one
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import socket
from collections.abc import Awaitable, Callable, Iterator
from pathlib import Path
from typing import Any

Note = Callable[[str], None]
Order = Callable[[dict[str, Any], Note], Awaitable[None]]

_LONGEST_PATH_BYTES = 100


class ControlError(Exception):
    """An order that was not carried out; the text says why."""


async def serve_control(path: Path, order: Order) -> asyncio.Server:
    """Take orders. `order` raises ControlError for one that cannot be carried out."""

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        def tell(message: dict[str, Any]) -> None:
            writer.write(json.dumps(message).encode() + b"\n")

        with contextlib.suppress(ConnectionError):
            try:
                asked = json.loads(await reader.readline())
                await order(asked, lambda text: tell({"note": text}))
                tell({"done": True, "problem": ""})
            except (ControlError, ValueError) as error:
                tell({"done": True, "problem": str(error)})
            await writer.drain()
        writer.close()

    path.unlink(missing_ok=True)  # noqa: ASYNC240 - of a supervisor that was killed; takes no time
    with _short(path) as short:
        return await asyncio.start_unix_server(serve, path=short)


def send_order(path: Path, order: dict[str, Any], on_note: Note, silence_s: float) -> None:
    """Send an order and wait until it is carried out.

    Raises:
        ControlError: it was not; or nobody took it, or told anything for `silence_s`.
    """
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as connection:
        connection.settimeout(silence_s)
        try:
            with _short(path) as short:
                connection.connect(short)
            connection.sendall(json.dumps(order).encode() + b"\n")
            with connection.makefile("rb") as answers:
                for line in answers:
                    answer = json.loads(line)
                    if answer.get("problem"):
                        raise ControlError(answer["problem"])
                    if answer.get("done"):
                        return
                    on_note(answer["note"])
        except (OSError, ValueError) as error:
            raise ControlError(f"the supervisor does not answer ({error})") from None
    raise ControlError("the supervisor ended before it was done")


@contextlib.contextmanager
def _short(path: Path) -> Iterator[str]:
    """A name of the socket that fits into the 107 bytes that an address has."""
    if len(os.fsencode(path)) <= _LONGEST_PATH_BYTES:
        yield str(path)
        return
    folder = os.open(path.parent, os.O_PATH | os.O_DIRECTORY)
    try:
        yield f"/proc/self/fd/{folder}/{path.name}"
    finally:
        os.close(folder)
