"""Free ports for processes that cannot be told to pick one themselves."""

from __future__ import annotations

import errno
import random
import socket
from collections import deque
from pathlib import Path

_KERNELS_OWN = Path("/proc/sys/net/ipv4/ip_local_port_range")
_FIRST = 20_000  # stacks of several processes look for theirs from 18000 on
_dice = random.SystemRandom()  # a seed that all runs share would make them meet
_given: deque[int] = deque(maxlen=2_000)
"""Not given again soon: whoever asked for one may not have bound it yet."""


def free_port(host: str = "127.0.0.1") -> int:
    """A TCP port that was free a moment ago and that this process was not given lately.

    Another process may take it before it is bound.
    """
    return free_ports(1, host)[0]


def free_ports(count: int, host: str = "127.0.0.1") -> list[int]:
    """Several different ports that were free a moment ago.

    The kernel gives none of them to a connection or to a server that asks for any port: those come from a
    range of its own.

    Raises:
        RuntimeError: hardly any port is free.
    """
    last = _first_of_the_kernel() - 1
    sockets: list[socket.socket] = []
    try:
        for _ in range(100 * count):
            port = _dice.randint(_FIRST, last)
            if port in _given:
                continue
            one = socket.socket(socket.AF_INET, socket.SOCK_STREAM)
            try:
                one.bind((host, port))
            except OSError as error:
                one.close()
                if error.errno != errno.EADDRINUSE:
                    raise
                continue
            sockets.append(one)
            _given.append(port)
            if len(sockets) == count:
                return [int(one.getsockname()[1]) for one in sockets]
        raise RuntimeError(f"found no {count} free ports from {_FIRST} to {last} on {host}")
    finally:
        for one in sockets:
            one.close()


def _first_of_the_kernel() -> int:
    """Where its range begins, if it leaves room below."""
    try:
        first = int(_KERNELS_OWN.read_text().split()[0])
    except (OSError, ValueError, IndexError):
        first = 32_768
    return first if first >= _FIRST + 5_000 else 65_536
