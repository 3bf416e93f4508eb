"""Which TCP ports the services of a stack listen on."""

from __future__ import annotations

import errno
import socket


class PortError(Exception):
    """A port that cannot be had, with the reason and what to do, for a person."""


class PortChooser:
    """Hands out ports that are free now, none of them twice."""

    def __init__(self) -> None:
        self._taken: set[int] = set()

    def choose(self, host: str, wanted: int, *, strict: bool = False) -> int:
        """Return `wanted` or, unless `strict`, the next free port after it.

        Raises:
            PortError: nothing can listen there.
        """
        if strict and (problem := _listening_problem(host, wanted)):
            if problem.errno == errno.EADDRINUSE:
                raise PortError(f"port {wanted} on {host} is taken; choose another one with --port.")
            raise PortError(
                f"nothing can listen on port {wanted} of {host} ({problem.strerror}); choose an address of "
                "this machine with --host, and a port that you may use with --port."
            )
        for port in range(wanted, min(wanted + 1000, 65536)):
            if port not in self._taken and port_is_free(host, port):
                self._taken.add(port)
                return port
        raise PortError(f"no free port from {wanted} on; stop something, or choose another range.")


def port_is_free(host: str, port: int) -> bool:
    """Whether a server could listen there now."""
    return _listening_problem(host, port) is None


def _listening_problem(host: str, port: int) -> OSError | None:
    """What would keep a server from listening there."""
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    with socket.socket(family, socket.SOCK_STREAM) as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((host, port))
        except OSError as error:
            return error
    return None
