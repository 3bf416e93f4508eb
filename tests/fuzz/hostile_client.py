"""Sends hostile requests, one after the other, and judges the answers."""

from __future__ import annotations

import contextlib
import http.client
import time
from collections import Counter

from tests.fuzz.attack import CANARY, Attack
from tests.fuzz.envelope import wrong_with_error

from rhizome_testing.gateway_process import GatewayProcess

TIMEOUT_S = 30.0
EXPECTED = (200, 400, 401, 403, 404, 405, 408, 413, 415, 429, 431, 503)


class HostileClient:
    """Remembers what was wrong, by the attack's name, and when each attack was under way."""

    def __init__(self, gateway: GatewayProcess) -> None:
        self._port = gateway.port
        self._connection = self._connect()
        self.failures: dict[str, str] = {}
        self.statuses: Counter[int] = Counter()
        self.spans: list[tuple[str, float, float]] = []

    def __enter__(self) -> HostileClient:
        return self

    def __exit__(self, *_: object) -> None:
        self._connection.close()

    def send(self, attack: Attack) -> None:
        started = time.monotonic()
        try:
            status, headers, body = self._exchange(attack)
        except (OSError, http.client.HTTPException) as error:
            self._connection.close()
            self._connection = self._connect()
            self.failures[attack.name] = f"no answer: {error!r}"
            return
        finally:
            self.spans.append((attack.name, started, time.monotonic()))
        self.statuses[status] += 1
        if problem := _wrong(attack, status, headers, body):
            self.failures[attack.name] = f"{status} {problem} {body[:300]!r}"

    def seconds_of(self, attack: Attack) -> float:
        """How long the answer to one more takes."""
        self.send(attack)
        _, began, ended = self.spans[-1]
        return ended - began

    def slower_than(self, bound_s: float) -> set[str]:
        """What took so long."""
        return {name for name, began, ended in self.spans if ended - began >= bound_s}

    def under_way(self, started: float, seconds: float) -> list[str]:
        """What was being attacked then."""
        return [name for name, begin, end in self.spans if begin < started + seconds and end > started]

    @property
    def report(self) -> str:
        shown = [f"{name}: {problem}" for name, problem in self.failures.items()]
        return f"{len(shown)} wrong answers\n" + "\n".join(shown[:60])

    def _connect(self) -> http.client.HTTPConnection:
        return http.client.HTTPConnection("127.0.0.1", self._port, timeout=TIMEOUT_S)

    def _exchange(self, attack: Attack) -> tuple[int, dict[str, str], bytes]:
        connection = self._connection
        connection.putrequest(
            attack.method, attack.path, skip_host="host" in attack.headers, skip_accept_encoding=True
        )
        if attack.method == "POST" or attack.body:
            connection.putheader("Content-Length", str(len(attack.body)))
        for name, value in attack.headers.items():
            connection.putheader(name, value.encode("latin-1"))
        with contextlib.suppress(BrokenPipeError, ConnectionResetError):
            connection.endheaders(attack.body or None)  # if it does not read all of it, the answer says why
        answer = connection.getresponse()
        body = answer.read()
        headers = {name.lower(): value for name, value in answer.getheaders()}
        if answer.will_close:
            connection.close()
        return answer.status, headers, body


def _wrong(attack: Attack, status: int, headers: dict[str, str], body: bytes) -> str:
    if status not in EXPECTED:
        return "is no status for this"
    if status == 200:
        broken = headers.get("content-type", "").startswith("text/event-stream") and b'"error":{' in body
        return "a stream with an error" if broken else ""
    shown = body + repr(headers).encode()
    if CANARY.lower().encode() in shown.lower():
        return "repeats what was sent"
    return wrong_with_error(attack.path, status, headers, body)
