"""A well-behaved client in a process of its own, that notes how long each of its requests took.

    python -m rhizome_testing.steady_client http://127.0.0.1:8000 --model talking-model

It asks one small question after the other. A process of its own, because whoever attacks the same server from
this one would slow down the measurement too. The clock is the machine's monotonic one, so what it noted can
be compared with the times of other processes.
"""

from __future__ import annotations

import argparse
import http.client
import json
import sys
import time
import urllib.parse
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from rhizome_testing.processes import ProcessFixture

_TIMEOUT_S = 30.0


@dataclass(frozen=True, slots=True)
class Asked:
    """One request.

    Attributes:
        started: on the monotonic clock.
        seconds: until the answer was complete.
        status: HTTP's.
    """

    started: float
    seconds: float
    status: int


class SteadyClient(ProcessFixture):
    """The process as its owner sees it.

    Args:
        url: of a gateway.
        log_dir: for what it notes.
        model: that it asks.
    """

    def __init__(self, url: str, log_dir: Path, model: str) -> None:
        command = [sys.executable, "-m", "rhizome_testing.steady_client", url, "--model", model]
        super().__init__(command, log=log_dir / "steady-client.log", name="steady-client")

    def asked(self) -> list[Asked]:
        """What it noted so far."""
        noted = [line.split() for line in self.output.splitlines(keepends=True) if line.endswith("\n")]
        return [Asked(float(started), float(seconds), int(status)) for started, seconds, status in noted]


def _ask(url: str, model: str, every_s: float) -> None:
    address = urllib.parse.urlsplit(url)
    connection = http.client.HTTPConnection(address.hostname or "", address.port, timeout=_TIMEOUT_S)
    question = {"model": model, "messages": [{"role": "user", "content": "How far is the moon?"}]}
    body = json.dumps(question | {"max_tokens": 16})
    while True:
        started = time.monotonic()
        connection.request("POST", "/v1/chat/completions", body, {"Content-Type": "application/json"})
        answer = connection.getresponse()
        answer.read()
        seconds = time.monotonic() - started
        print(f"{started:.6f} {seconds:.6f} {answer.status}", flush=True)  # noqa: T201 - read by its owner
        time.sleep(every_s)


def main(arguments: Sequence[str] | None = None) -> None:
    """Ask until SIGTERM."""
    parser = argparse.ArgumentParser(description="A client that asks small questions, one by one.")
    parser.add_argument("url")
    parser.add_argument("--model", required=True)
    parser.add_argument("--every-s", type=float, default=0.005, help="pause between answer and question")
    given = parser.parse_args(arguments)
    _ask(given.url, given.model, given.every_s)


if __name__ == "__main__":
    main()
