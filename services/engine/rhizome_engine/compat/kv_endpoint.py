"""Where KV events are published, and who may hear of them.

They hold the token ids of everybody's prompts. So only this host hears of them unless the operator says
otherwise.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from rhizome_transport.tokens import is_loopback


@dataclass(frozen=True, slots=True)
class KvEventSettings:
    """Where and how KV events are published.

    Attributes:
        endpoint: `tcp://HOST:PORT` or `ipc:///path`.
        replay_endpoint: where old ones are sent again; empty for nowhere.
        connect: the endpoint is a subscriber's, which is connected to.
        topic: the first frame.
        form: of events: lists as vLLM wrote them for long, or maps as it does now.
    """

    endpoint: str
    replay_endpoint: str = ""
    connect: bool = False
    topic: str = ""
    form: Literal["lists", "maps"] = "lists"

    @classmethod
    def from_options(
        cls,
        endpoint: str,
        *,
        replay_endpoint: str,
        connect: bool,
        topic: str,
        form: Literal["lists", "maps"],
        may_leave_host: bool,
    ) -> KvEventSettings | None:
        """What the command line says; None for no KV events.

        Raises:
            ValueError: an endpoint is none, or other hosts could reach it and `may_leave_host` is false.
        """
        if not endpoint:
            if replay_endpoint or connect:
                raise ValueError("give --kv-events-endpoint, too: without it no KV events are published")
            return None
        for option, one in (("endpoint", endpoint), ("replay-endpoint", replay_endpoint)):
            if not one:
                continue
            check_endpoint(one)
            if not may_leave_host and not stays_on_host(one):
                raise ValueError(
                    f"--kv-events-{option} {one} is reached from other hosts, and KV events hold the token "
                    "ids of everybody's prompts: give a loopback address, or --expose-token-ids"
                )
        return cls(endpoint, replay_endpoint, connect, topic, form)


def check_endpoint(endpoint: str) -> str:
    """An endpoint that ZeroMQ can open.

    Raises:
        ValueError: it is none; the message says what one looks like.
    """
    kind, separator, rest = endpoint.partition("://")
    if separator and kind == "ipc" and rest.startswith("/"):
        return endpoint
    host, colon, port = rest.rpartition(":")
    if separator and kind == "tcp" and host and colon and port.isdecimal() and int(port) < 65536:
        return endpoint
    raise ValueError(f"an endpoint is tcp://HOST:PORT, tcp://*:PORT or ipc:///path, not {endpoint!r}")


def stays_on_host(endpoint: str) -> bool:
    """Whether only this host can reach an endpoint."""
    if endpoint.startswith("ipc://"):
        return True
    return is_loopback(endpoint.removeprefix("tcp://").rpartition(":")[0].strip("[]"))
