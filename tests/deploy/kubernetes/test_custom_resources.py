"""Objects of other projects' kinds: only fields that they document, of the right type, and all they require.

The tables are what the projects' API references say of the fields; `!` marks what is required.
"""

from __future__ import annotations

from typing import Any

import pytest
from tests.deploy.kubernetes.manifests import Stack, needs_kubectl

pytestmark = needs_kubectl

STRING, NUMBER, FLAG = str, int, bool
MAP = dict[str, str]

_POLICIES = [{"type!": STRING, "value!": NUMBER, "periodSeconds!": NUMBER}]
_RULES = {"stabilizationWindowSeconds": NUMBER, "selectPolicy": STRING, "policies": _POLICIES}
SCALED_OBJECT = {
    "scaleTargetRef!": {
        "apiVersion": STRING,
        "kind": STRING,
        "name!": STRING,
        "envSourceContainerName": STRING,
    },
    "minReplicaCount": NUMBER,
    "maxReplicaCount": NUMBER,
    "idleReplicaCount": NUMBER,
    "pollingInterval": NUMBER,
    "cooldownPeriod": NUMBER,
    "initialCooldownPeriod": NUMBER,
    "fallback": {"failureThreshold!": NUMBER, "replicas!": NUMBER, "behavior": STRING},
    "advanced": {
        "restoreToOriginalReplicaCount": FLAG,
        "horizontalPodAutoscalerConfig": {
            "name": STRING,
            "behavior": {"scaleUp": _RULES, "scaleDown": _RULES},
        },
    },
    "triggers!": [
        {
            "type!": STRING,
            "name": STRING,
            "metricType": STRING,
            "useCachedMetrics": FLAG,
            "metadata!": MAP,
            "authenticationRef": {"name!": STRING, "kind": STRING},
        }
    ],
}
PROMETHEUS_TRIGGER = {
    "serverAddress!": STRING,
    "query!": STRING,
    "threshold!": STRING,
    "activationThreshold": STRING,
    "namespace": STRING,
    "customHeaders": STRING,
    "ignoreNullValues": STRING,
    "queryParameters": STRING,
    "unsafeSsl": STRING,
    "timeout": STRING,
}
SERVICE_MONITOR = {
    "selector!": {"matchLabels": MAP},
    "namespaceSelector": {"any": FLAG, "matchNames": [STRING]},
    "jobLabel": STRING,
    "targetLabels": [STRING],
    "podTargetLabels": [STRING],
    "endpoints!": [
        {
            "port": STRING,
            "path": STRING,
            "scheme": STRING,
            "interval": STRING,
            "scrapeTimeout": STRING,
            "honorLabels": FLAG,
            "relabelings": [
                {
                    "sourceLabels": [STRING],
                    "separator": STRING,
                    "targetLabel": STRING,
                    "regex": STRING,
                    "replacement": STRING,
                    "action": STRING,
                }
            ],
        }
    ],
}
INFERENCE_POOL = {
    "selector!": {"matchLabels!": MAP},
    "targetPorts!": [{"number!": NUMBER}],
    "appProtocol": STRING,
    "endpointPickerRef!": {
        "group": STRING,
        "kind": STRING,
        "name!": STRING,
        "port": {"number!": NUMBER},
        "failureMode": STRING,
    },
}
KINDS = {
    "ScaledObject": ("keda.sh/v1alpha1", SCALED_OBJECT),
    "ServiceMonitor": ("monitoring.coreos.com/v1", SERVICE_MONITOR),
    "InferencePool": ("inference.networking.k8s.io/v1", INFERENCE_POOL),
}


def check(value: Any, shape: Any, where: str) -> None:
    """Compare a value with a table."""
    if isinstance(shape, dict):
        assert isinstance(value, dict), f"{where} must be an object"
        fields = {name.rstrip("!"): inner for name, inner in shape.items()}
        required = {name.rstrip("!") for name in shape if name.endswith("!")}
        assert value.keys() <= fields.keys(), (
            f"{where} has unknown fields {sorted(value.keys() - fields.keys())}"
        )
        assert required <= value.keys(), f"{where} lacks {sorted(required - value.keys())}"
        for name, inner in value.items():
            check(inner, fields[name], f"{where}.{name}")
    elif isinstance(shape, list):
        assert isinstance(value, list) and value, f"{where} must be a list with something in it"
        for number, inner in enumerate(value):
            check(inner, shape[0], f"{where}[{number}]")
    elif shape is MAP:
        assert isinstance(value, dict) and all(isinstance(one, str) for one in value.values()), where
    else:
        assert type(value) is shape, f"{where} is {value!r}"


def test_fields_are_those_that_are_documented(stack: Stack) -> None:
    for kind, (version, shape) in KINDS.items():
        for document in stack.of_kind(kind):
            assert document["apiVersion"] == version
            assert document.keys() == {"apiVersion", "kind", "metadata", "spec"}
            check(document["spec"], shape, f"{kind}.spec")
            for trigger in document["spec"].get("triggers", ()):
                assert trigger["type"] == "prometheus"
                assert trigger["metricType"] in {"AverageValue", "Value"}
                check(trigger["metadata"], PROMETHEUS_TRIGGER, "metadata")
                float(trigger["metadata"]["threshold"])


@pytest.mark.parametrize("component", ["autoscaling-keda", "monitoring", "inference-pool"])
def test_there_is_something_to_check(component: str) -> None:
    assert any(Stack("prod-gpu", component).of_kind(kind) for kind in KINDS)


def test_a_monitor_reads_ports_that_its_service_has() -> None:
    stack = Stack("prod-gpu")
    (monitor,) = stack.of_kind("ServiceMonitor")
    wanted = monitor["spec"]["selector"]["matchLabels"].items()
    (service,) = (one for one in stack.of_kind("Service") if wanted <= one["metadata"]["labels"].items())
    named = {port["name"] for port in service["spec"]["ports"]}
    assert {endpoint["port"] for endpoint in monitor["spec"]["endpoints"]} == named
    assert {one.name for one in stack.behind(service)} == {"gateway", "proxy", "engine"}
    for endpoint in monitor["spec"]["endpoints"]:  # the jobs that rules and dashboards know
        (rule,) = endpoint["relabelings"]
        assert rule == {"sourceLabels": ["__meta_kubernetes_pod_container_name"], "targetLabel": "job"}
    names = {container["name"] for _, container in Stack("prod-gpu", "zmq-sidecar").containers()}
    assert names | {container["name"] for _, container in stack.containers()} == {
        "gateway",
        "proxy",
        "engine",
    }


def test_a_pool_has_the_engines_and_the_port_that_they_listen_on() -> None:
    stack = Stack("prod-gpu", "inference-pool")
    (pool,) = stack.of_kind("InferencePool")
    (engine,) = stack.behind(pool)
    assert engine.name == "engine"
    ports = {port["containerPort"]: port["name"] for port in engine.container("engine")["ports"]}
    assert [ports[port["number"]] for port in pool["spec"]["targetPorts"]] == ["grpc"]
    assert pool["spec"]["appProtocol"] == "kubernetes.io/h2c"
    assert pool["spec"]["endpointPickerRef"]["failureMode"] in {"FailOpen", "FailClose"}


def test_a_wrong_field_is_found() -> None:
    (scaled,) = Stack("prod-gpu").of_kind("ScaledObject")
    with pytest.raises(AssertionError, match="coolDownPeriod"):
        check(scaled["spec"] | {"coolDownPeriod": 5}, SCALED_OBJECT, "spec")
    with pytest.raises(AssertionError, match="lacks"):
        check({"triggers": scaled["spec"]["triggers"]}, SCALED_OBJECT, "spec")
