"""Tells a service manager such as systemd how this process is: sd_notify(3), without a library.

A unit of `Type=notify` counts as started once the service takes requests, not when its process exists. What
is sent are datagrams of `NAME=value` lines to the socket that `$NOTIFY_SOCKET` names; without it, nothing.
"""

from __future__ import annotations

import asyncio
import logging
import os
import socket
import time
from collections.abc import Callable, Mapping

_log = logging.getLogger(__name__)

_UNTIL_READY_S = 0.1
_LOOK_EVERY_S = 1.0


class ServiceManager:
    """Whoever started this process and wants to know.

    Args:
        environment: `NOTIFY_SOCKET` is a path, or with `@` a name in the abstract namespace of Linux;
            `WATCHDOG_USEC` asks for a sign of life more often than that, unless `WATCHDOG_PID` is another
            process.
    """

    def __init__(self, environment: Mapping[str, str] = os.environ) -> None:
        address = environment.get("NOTIFY_SOCKET", "")
        self._address = "\0" + address[1:] if address.startswith("@") else address
        ours = environment.get("WATCHDOG_PID", str(os.getpid())) == str(os.getpid())
        asked = environment.get("WATCHDOG_USEC", "")
        self._beat_every_s = int(asked) / 2e6 if self._address and ours and asked.isdecimal() else 0.0
        self._next_beat = 0.0
        self._told = ""
        self._ready = self._stopping = False
        self._following: asyncio.Task[None] | None = None

    def follow(self, serving: Callable[[], bool], status: Callable[[], str]) -> None:
        """Tell from now on, in the running loop, as long as that turns.

        Args:
            serving: whether requests are taken; the first time, the service counts as started.
            status: one line for people.
        """
        if self._address:
            self._following = asyncio.create_task(self._follow(serving, status), name="sd_notify")

    def stopping(self) -> None:
        """The service takes no more requests; open ones may still be answered."""
        if not self._stopping:
            self._stopping = True
            self._send("STOPPING=1", "STATUS=draining")

    def beat(self) -> None:
        """Give a sign of life if one is due; for those without a loop, at least every few 100 ms."""
        if self._beat_every_s and (now := time.monotonic()) >= self._next_beat:
            self._next_beat = now + self._beat_every_s
            self._send("WATCHDOG=1")

    async def _follow(self, serving: Callable[[], bool], status: Callable[[], str]) -> None:
        while True:
            self.beat()
            if not self._stopping:
                self._tell(serving(), status())
            pause_s = _LOOK_EVERY_S if self._ready else _UNTIL_READY_S
            await asyncio.sleep(min(pause_s, self._beat_every_s or pause_s))

    def _tell(self, serving: bool, status: str) -> None:
        lines = []
        if serving and not self._ready:
            self._ready = True
            lines.append("READY=1")
        if status != self._told:
            self._told = status
            lines.append("STATUS=" + " ".join(status.split()))
        if lines:
            self._send(*lines)

    def _send(self, *lines: str) -> None:
        if not self._address:
            return
        try:
            with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC) as channel:
                channel.setblocking(False)
                channel.sendto("\n".join(lines).encode(), self._address)
        except OSError as error:  # who does not listen must not keep the service from serving
            _log.debug("the service manager was not told %s: %s", lines, error)
