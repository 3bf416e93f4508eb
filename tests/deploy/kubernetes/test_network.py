"""NetworkPolicies, read as a cluster reads them: which connections are let through, and which are not."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import pytest
from tests.deploy.kubernetes.manifests import Manifest, Stack, Workload, needs_kubectl
from tests.deploy.kubernetes.test_settings import read

pytestmark = needs_kubectl

HERE = "rhizome"


@dataclass(frozen=True)
class Place:
    """A pod, as policies see it; without labels, an address outside of the cluster."""

    namespace: str = ""
    labels: tuple[tuple[str, str], ...] = ()


OUTSIDE = Place()
STRANGER = Place("other", (("app", "shop"),))
PROMETHEUS = Place("monitoring", (("app.kubernetes.io/name", "prometheus"),))
COLLECTOR = Place("monitoring", (("app", "collector"),))
DNS = Place("kube-system", (("k8s-app", "kube-dns"),))


def place(workload: Workload) -> Place:
    """Where a Deployment's pods are."""
    return Place(HERE, tuple(sorted(workload.labels.items())))


def selects(selector: Manifest, labels: Mapping[str, str]) -> bool:
    """What a LabelSelector means."""
    for wanted in selector.get("matchExpressions", ()):
        assert wanted["operator"] == "In"
        if labels.get(wanted["key"]) not in wanted["values"]:
            return False
    return bool(selector.get("matchLabels", {}).items() <= labels.items())


def allowed(stack: Stack, source: Place, target: Place, port: int, protocol: str = "TCP") -> bool:
    """Whether a connection gets through: both ends must let it."""
    return _lets(stack, "Egress", source, target, port, protocol) and _lets(
        stack, "Ingress", target, source, port, protocol
    )


def _lets(stack: Stack, way: str, own: Place, other: Place, port: int, protocol: str) -> bool:
    if own.namespace != HERE:
        return True  # policies of others are theirs
    applying = [
        policy["spec"]
        for policy in stack.of_kind("NetworkPolicy")
        if way in policy["spec"]["policyTypes"] and selects(policy["spec"]["podSelector"], dict(own.labels))
    ]
    rules = [rule for spec in applying for rule in spec.get(way.lower(), ())]
    return not applying or any(
        _port_fits(rule, port, protocol) and _peer_fits(rule.get("to" if way == "Egress" else "from"), other)
        for rule in rules
    )


def _port_fits(rule: Manifest, port: int, protocol: str) -> bool:
    ports = rule.get("ports")
    return ports is None or any((one["port"], one["protocol"]) == (port, protocol) for one in ports)


def _peer_fits(peers: list[Any] | None, other: Place) -> bool:
    if peers is None:
        return True
    labels = dict(other.labels)
    for peer in peers:
        assert peer.keys() <= {"podSelector", "namespaceSelector"}
        if "namespaceSelector" in peer:
            there = selects(peer["namespaceSelector"], {"kubernetes.io/metadata.name": other.namespace})
        else:
            there = other.namespace == HERE
        if there and selects(peer.get("podSelector", {}), labels):
            return True
    return False


@pytest.fixture(
    params=[("dev-cpu", "network-policies"), ("prod-gpu", ""), ("prod-gpu", "zmq-sidecar")],
    ids=lambda names: "+".join(filter(None, names)),
)
def fenced(request: pytest.FixtureRequest) -> Stack:
    """Renderings with policies."""
    return Stack(*request.param)


def test_the_way_of_a_request_is_open_and_no_other(fenced: Stack) -> None:
    """Edges follow from the settings: who is told to talk to whom, at which port."""
    needed, ports, places = set(), set(), {workload.name: place(workload) for workload in fenced.workloads}
    for workload, container in fenced.containers():
        settings = read(fenced, container)
        ports |= {settings.port, settings.metrics_port, getattr(settings, "admin_port", settings.port)}
        told = {"gateway": "engine", "proxy": "backends"}.get(container["name"])
        target = "" if told is None else getattr(settings, told).removeprefix("dns:///")
        if target and not target.startswith("ipc://"):
            name, _, port = target.partition(":")
            (behind,) = fenced.behind(fenced.named("Service", name))
            needed.add((workload.name, behind.name, int(port)))
    found = {
        (source, target, port)
        for source, one in places.items()
        for target, other in places.items()
        for port in ports
        if source != target and allowed(fenced, one, other, port)
    }
    assert found == needed
    assert needed or "pair" in places


def test_strangers_reach_the_gateway_alone(fenced: Stack) -> None:
    for stranger in (OUTSIDE, STRANGER):
        for workload in fenced.workloads:
            for container in workload.pod["containers"]:
                for port in container["ports"]:
                    reached = allowed(fenced, stranger, place(workload), port["containerPort"])
                    assert reached == (port["name"] == "http"), f"{workload.name} {port}"


def test_prometheus_reads_numbers_and_nothing_else(fenced: Stack) -> None:
    for workload in fenced.workloads:
        for container in workload.pod["containers"]:
            for port in container["ports"]:
                reached = allowed(fenced, PROMETHEUS, place(workload), port["containerPort"])
                assert reached == (port["name"] in {"metrics", "engine-metrics", "http"})


def test_all_look_names_up_and_send_spans(fenced: Stack) -> None:
    for workload in fenced.workloads:
        assert allowed(fenced, place(workload), DNS, 53, "UDP")
        assert allowed(fenced, place(workload), DNS, 53, "TCP")
        assert allowed(fenced, place(workload), COLLECTOR, 4318)


def test_nobody_gets_out(fenced: Stack) -> None:
    for workload in fenced.workloads:
        for port in (80, 443, 8080, 4317):
            assert not allowed(fenced, place(workload), OUTSIDE, port)
            assert not allowed(fenced, place(workload), STRANGER, port)


def test_pods_that_are_none_of_ours_are_shut_in(fenced: Stack) -> None:
    other = Place(HERE, (("app", "debug"),))
    for workload in fenced.workloads:
        assert not allowed(fenced, other, place(workload), 50051)
    assert not allowed(fenced, other, DNS, 53, "UDP")


def test_without_the_component_everything_is_open() -> None:
    stack = Stack("dev-cpu")
    assert allowed(stack, STRANGER, place(stack.workloads[0]), 50051)
