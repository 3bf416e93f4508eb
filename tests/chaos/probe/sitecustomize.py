"""Python loads this first in every process of a stack under test: it tells how many tasks are alive in it.

A process listens on `$RHIZOME_CHAOS_PROBE/PID.sock` and writes one line of JSON to whoever connects.
"""

from __future__ import annotations

import gc
import json
import os
import socket
import sys
import threading
from collections import Counter
from pathlib import Path


def _tasks() -> dict[str, int]:
    """Tasks that are not done, by the name of their coroutine."""
    asyncio = sys.modules.get("asyncio")
    if asyncio is None:
        return {}
    found = (one for one in gc.get_objects() if isinstance(one, asyncio.Task))
    return Counter(task.get_coro().__qualname__ for task in found if not task.done())


def _serve(listener: socket.socket) -> None:
    while True:
        connection, _ = listener.accept()
        with connection:
            try:
                told = {"tasks": _tasks(), "threads": threading.active_count()}
                connection.sendall(json.dumps(told).encode())
            except OSError:
                pass


def _listen(folder: str) -> None:
    path = Path(folder, f"{os.getpid()}.sock")
    path.unlink(missing_ok=True)
    listener = socket.socket(socket.AF_UNIX)
    listener.bind(str(path))
    listener.listen(8)
    threading.Thread(target=_serve, args=(listener,), name="chaos-probe", daemon=True).start()


if os.environ.get("RHIZOME_CHAOS_PROBE"):
    _listen(os.environ["RHIZOME_CHAOS_PROBE"])
