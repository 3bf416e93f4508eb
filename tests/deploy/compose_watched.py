"""`compose.observability.yaml` where its images cannot be had: something of our own in the place of each.

`span_store.py` in the gateway's image takes the collector's place, a program of this machine that of
Prometheus. What compose sets for the services, and gives to Prometheus, stays as it is in the file. Jaeger
and Grafana are left out.
"""

from __future__ import annotations

import shutil
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx
import yaml
from tests.deploy import span_store
from tests.deploy.compose_stack import FILES, VERSION, ComposeStack, run

from rhizome_testing.otlp_sink import TRACES_PATH, OtlpSink, SunkSpan
from rhizome_testing.ports import free_ports

PROMETHEUS = "rhizome-test:prometheus"
_DOCKERFILE = f"""
FROM rhizome/gateway:{VERSION}
USER 0
COPY prometheus /bin/prometheus
RUN mkdir /prometheus && chown 65534:65534 /prometheus
HEALTHCHECK NONE
"""
_POLL_S = 0.3


def build_prometheus(environment: dict[str, str], folder: Path, program: str) -> None:
    """Put a Prometheus of this machine into an image.

    Raises:
        AssertionError: it cannot be built.
    """
    shutil.copy(program, folder / "prometheus")
    (folder / "Dockerfile").write_text(_DOCKERFILE)
    run(["docker", "build", "--network", "none", "--tag", PROMETHEUS, str(folder)], environment, 300)


class WatchedStack(ComposeStack):
    """The stack with TLS and `.observability` on top.

    Args:
        environment: with the daemon and the images, `PROMETHEUS` among them.
        folder: for certificates and the file on top of all others.

    Attributes:
        prometheus_url: where Prometheus is published.
    """

    services = ("nginx", "otel-collector", "prometheus")
    """These, and what they depend on."""

    def __init__(self, environment: dict[str, str], folder: Path) -> None:
        spans, prometheus = free_ports(2)
        on_top = folder / "compose.stand-ins.yaml"
        on_top.write_text(yaml.safe_dump({"services": _stand_ins(spans)}))
        ports = {"PROMETHEUS_PORT": str(prometheus), "TRACE_SHARE": "1.0"}
        files = (*FILES, "compose.observability.yaml", on_top)
        super().__init__({**environment, **ports}, folder, files, "watched")
        self.prometheus_url = f"http://127.0.0.1:{prometheus}"
        self._spans_url = f"http://127.0.0.1:{spans}/spans"
        self._http = httpx.Client(timeout=60, trust_env=False)
        self._sink = OtlpSink()

    def close(self) -> None:
        """Close what this process has open; the containers stay."""
        self._http.close()
        self._sink.close()

    def trace(
        self, trace_id: str, wanted: Callable[[list[SunkSpan]], bool], timeout_s: float = 60
    ) -> list[SunkSpan]:
        """The spans of a trace, by start time, once they are as wanted.

        Raises:
            TimeoutError: they are not; the message lists what there is.
        """
        deadline = time.monotonic() + timeout_s
        while True:
            arrived = self._http.get(self._spans_url).raise_for_status().content
            self._http.post(self._sink.endpoint + TRACES_PATH, content=arrived).raise_for_status()
            spans = self._sink.trace(trace_id)
            if wanted(spans):
                return spans
            if time.monotonic() > deadline:
                raise TimeoutError(f"after {timeout_s:g} s these are the spans: {outline(spans)}")
            time.sleep(_POLL_S)

    def traces(self) -> set[str]:
        """Ids of all traces that were fetched."""
        return {span.trace_id for span in self._sink.spans}

    def samples(self, query: str) -> list[tuple[dict[str, str], float]]:
        """What Prometheus knows now: labels and value of each.

        Raises:
            AssertionError: it refuses the query.
        """
        answer = self._http.get(f"{self.prometheus_url}/api/v1/query", params={"query": query}).json()
        assert answer["status"] == "success", answer
        return [(one["metric"], float(one["value"][1])) for one in answer["data"]["result"]]

    def prometheus_api(self, path: str) -> Any:
        """Data of one of its answers."""
        return self._http.get(f"{self.prometheus_url}/api/v1/{path}").raise_for_status().json()["data"]


def outline(spans: Sequence[SunkSpan]) -> list[str]:
    """Spans as the tree that they are, a line for each, deeper ones further to the right."""
    known = {span.span_id for span in spans}
    lines: list[str] = []

    def walk(parent: str, depth: int) -> None:
        for span in spans:
            if span.parent_span_id == parent:
                name = span.name if span.kind == "INTERNAL" else f"{span.service} {span.kind}"
                lines.append("  " * depth + name)
                walk(span.span_id, depth + 1)

    for parent in dict.fromkeys(span.parent_span_id for span in spans if span.parent_span_id not in known):
        walk(parent, 0)
    return lines


@contextmanager
def watched_stack(environment: dict[str, str], folder: Path) -> Iterator[WatchedStack]:
    """The stack, up from here to the end."""
    stack = WatchedStack(environment, folder)
    try:
        stack.compose("up", "--detach", *stack.services, timeout_s=1200)
        stack.wait(lambda: len(stack.containers()) == 7, "seven containers")
        for service in ("nginx", "otel-collector"):
            stack.wait(lambda service=service: stack.healthy(service), f"{service} is healthy")
        yield stack
    finally:
        stack.compose("down", "--volumes")
        stack.close()


def _stand_ins(spans_port: int) -> dict[str, Any]:
    """What differs from `compose.observability.yaml`."""
    program = Path(span_store.__file__)
    ask = f"import urllib.request as u; u.urlopen('http://127.0.0.1:{span_store.PORT}')"
    return {
        "otel-collector": {
            "image": f"rhizome/gateway:{VERSION}",
            "entrypoint": ["python"],
            "command": ["/span_store.py"],
            "init": True,  # what a program does not handle reaches no first process of a container
            "volumes": [f"{program}:/span_store.py:ro"],
            "ports": [f"127.0.0.1:{spans_port}:{span_store.PORT}"],
            "networks": ["front"],  # beside its own: a port of an internal network cannot be published
            "healthcheck": {"test": ["CMD", "python", "-c", ask], "interval": "2s", "timeout": "10s"},
        },
        "prometheus": {"image": PROMETHEUS, "entrypoint": ["/bin/prometheus"]},
    }
