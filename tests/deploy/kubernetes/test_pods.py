"""Policies: how every pod starts, says how it is, stops, and what it may do."""

from __future__ import annotations

import re

from tests.deploy.kubernetes.manifests import Manifest, Stack, needs_kubectl
from tests.deploy.kubernetes.test_settings import read

from rhizome_proxy.service.proxy_service import PROXY_SERVICE
from rhizome_transport.channel import ENGINE_SERVICE

pytestmark = needs_kubectl

EXIT_S = 10
"""What a service needs to end when nothing is open any more; an engine waits 5 s for its core."""

_UNITS = {"Ki": 2**10, "Mi": 2**20, "Gi": 2**30}


def _bytes(quantity: str) -> int:
    number, unit = re.fullmatch(r"(\d+)([KMG]i)", quantity).groups()  # type: ignore[union-attr]
    return int(number) * _UNITS[unit]


def test_probes_ask_what_the_services_answer(stack: Stack) -> None:
    ready = {"proxy": PROXY_SERVICE, "engine": ENGINE_SERVICE}
    for _, container in stack.containers():
        ports = {port["name"]: port["containerPort"] for port in container["ports"]}
        startup, readiness, liveness = (
            container[f"{kind}Probe"] for kind in ("startup", "readiness", "liveness")
        )
        if container["name"] == "gateway":
            # Alive whatever the engines do: a gateway that is started again helps no engine.
            assert startup["httpGet"] == liveness["httpGet"] == {"path": "/health", "port": "http"}
            assert readiness["httpGet"] == {"path": "/ready", "port": "http"}
            continue
        service = ready[container["name"]]
        assert startup["grpc"] == readiness["grpc"] == {"port": ports["grpc"], "service": service}
        assert liveness["grpc"] == {"port": ports["grpc"]}, "the process, not its model"


def test_a_probe_that_is_late_once_ends_nothing(stack: Stack) -> None:
    for _, container in stack.containers():
        liveness, readiness = container["livenessProbe"], container["readinessProbe"]
        assert liveness["failureThreshold"] * liveness["periodSeconds"] >= 30
        assert readiness["periodSeconds"] <= 10
        assert all(probe["timeoutSeconds"] >= 3 for probe in (liveness, readiness))


def test_an_engine_that_loads_is_left_alone_as_long_as_it_gives_itself(stack: Stack) -> None:
    for workload, container in stack.containers():
        startup = container["startupProbe"]
        window_s = startup["failureThreshold"] * startup["periodSeconds"]
        if container["name"] != "engine":
            assert window_s >= 30
            continue
        assert window_s > read(stack, container).load_timeout_s
        assert workload.manifest["spec"]["progressDeadlineSeconds"] > window_s


def test_what_is_open_has_its_time_before_the_pod_is_killed(stack: Stack) -> None:
    for workload, container in stack.containers():
        settings = read(stack, container)
        drain_s = settings.graceful_shutdown_s if container["name"] == "gateway" else settings.drain_timeout_s
        drain_s += getattr(settings, "drain_delay_s", 0)
        before_s = container["lifecycle"]["preStop"]["sleep"]["seconds"]
        assert before_s >= 5, "load balancers need a moment"
        assert drain_s >= 60, "answers may be long"
        assert workload.pod["terminationGracePeriodSeconds"] >= before_s + drain_s + EXIT_S, workload.name


def test_who_is_asked_outlives_who_asks(stack: Stack) -> None:
    """In a pod with both, the engine takes requests for as long as the gateway does."""
    for workload in stack.workloads:
        sleeps = {
            one["name"]: one["lifecycle"]["preStop"]["sleep"]["seconds"] for one in workload.pod["containers"]
        }
        if len(sleeps) > 1:
            assert sleeps["engine"] > sleeps["gateway"]


def test_pods_are_restricted(stack: Stack) -> None:
    for workload in stack.workloads:
        rights = workload.pod["securityContext"]
        assert rights["runAsNonRoot"] and rights["runAsUser"] == rights["runAsGroup"] == 65532
        assert rights["seccompProfile"] == {"type": "RuntimeDefault"}
        assert workload.pod["automountServiceAccountToken"] is False
        assert not {"hostNetwork", "hostPID", "hostIPC"} & workload.pod.keys()
        for container in (*workload.pod["containers"], *workload.pod.get("initContainers", ())):
            assert container["securityContext"] == {
                "allowPrivilegeEscalation": False,
                "readOnlyRootFilesystem": True,
                "capabilities": {"drop": ["ALL"]},
            }
        for volume in workload.pod["volumes"]:
            assert "hostPath" not in volume
    for account in stack.of_kind("ServiceAccount"):
        assert account["automountServiceAccountToken"] is False


def test_services_of_the_namespace_make_no_settings(stack: Stack) -> None:
    """Kubernetes would set `PORT`-like variables for each Service, and services read variables."""
    assert all(workload.pod["enableServiceLinks"] is False for workload in stack.workloads)


def test_memory_is_bounded_and_what_was_asked_for(stack: Stack) -> None:
    for workload in stack.workloads:
        for container in (*workload.pod["containers"], *workload.pod.get("initContainers", ())):
            asked, most = container["resources"]["requests"], container["resources"]["limits"]
            assert asked["memory"] == most["memory"], "a pod that may grow is the first to be killed"
            assert asked["ephemeral-storage"] == most["ephemeral-storage"]
            assert "cpu" in asked
            assert "cpu" not in most, "throttling stops a stream in the middle of a step"
            assert _mounted_memory(workload.pod, container) < _bytes(most["memory"])


def _mounted_memory(pod: Manifest, container: Manifest) -> int:
    """What may lie in memory volumes counts as the container's memory."""
    sizes = {
        volume["name"]: _bytes(volume["emptyDir"]["sizeLimit"])
        for volume in pod["volumes"]
        if "emptyDir" in volume
    }
    return sum(sizes.get(mount["name"], 0) for mount in container["volumeMounts"])


def test_what_is_written_goes_to_memory_with_a_limit(stack: Stack) -> None:
    for workload, container in stack.containers():
        for volume in workload.pod["volumes"]:
            if "emptyDir" in volume:
                assert volume["emptyDir"]["medium"] == "Memory" and volume["emptyDir"]["sizeLimit"]
        mounts = {mount["mountPath"]: mount for mount in container["volumeMounts"]}
        assert "/tmp" in mounts and not mounts["/tmp"].get("readOnly")
        for path, mount in mounts.items():
            if path.startswith(("/models", "/etc")):
                assert mount["readOnly"] is True
        if container["name"] == "engine":
            shm = next(one for one in workload.pod["volumes"] if one["name"] == mounts["/dev/shm"]["name"])
            least = 2**30 if "gpu" in stack.components else 2**26 + 1
            assert _bytes(shm["emptyDir"]["sizeLimit"]) >= least


def test_a_gpu_is_asked_for_with_all_that_it_takes(stack: Stack) -> None:
    for workload, container in stack.containers():
        gpus = container["resources"]["limits"].get("nvidia.com/gpu")
        if container["name"] != "engine" or "gpu" not in stack.components:
            assert gpus is None
            continue
        assert gpus == "1"
        assert read(stack, container).device == "cuda"
        assert {"key": "nvidia.com/gpu", "operator": "Exists", "effect": "NoSchedule"} in workload.pod[
            "tolerations"
        ]
        assert workload.pod["runtimeClassName"] == "nvidia"
        assert container["image"].endswith("-cuda")


def test_rollouts_take_no_more_engines_than_there_are(stack: Stack) -> None:
    for workload in stack.workloads:
        strategy = workload.manifest["spec"]["strategy"]["rollingUpdate"]
        if any(container["name"] == "engine" for container in workload.pod["containers"]):
            assert strategy == {"maxSurge": 0, "maxUnavailable": 1}
        else:
            assert strategy == {"maxSurge": 1, "maxUnavailable": 0}


def test_each_deployment_has_a_budget_that_lets_nodes_be_drained(stack: Stack) -> None:
    budgets = stack.of_kind("PodDisruptionBudget")
    found = [workload.name for budget in budgets for workload in stack.behind(budget)]
    assert sorted(found) == sorted(workload.name for workload in stack.workloads)
    for budget in budgets:
        assert budget["spec"]["maxUnavailable"] == 1
        assert budget["spec"]["unhealthyPodEvictionPolicy"] == "AlwaysAllow"


def test_a_fetched_model_is_compared_before_the_engine_sees_it() -> None:
    stack = Stack("dev-cpu", "model-init-checksum")
    (workload,) = (one for one in stack.workloads if one.name == "engine")
    (fetching,) = workload.pod["initContainers"]
    variables = stack.environment(workload.container("engine"))
    assert fetching["command"][-1] == variables["RHIZOME_ENGINE_MODEL"]
    (source,) = (one for one in workload.pod["volumes"] if one["name"] == "model-source")
    files = stack.named("ConfigMap", source["configMap"]["name"])["data"]
    assert {"fetch_model.py", "SHA256SUMS", "MODEL_URL"} == files.keys()
    mounts = {one["mountPath"]: one.get("readOnly", False) for one in fetching["volumeMounts"]}
    assert mounts == {"/models/fetched": False, "/etc/rhizome/model": True}
    assert stack.environment(fetching)["MODEL_URL"].startswith("https://")
