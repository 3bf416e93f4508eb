"""Every overlay renders, with every component, and what one object names another one is."""

from __future__ import annotations

import re
import tomllib
from collections.abc import Iterator
from typing import Any

import pytest
from tests.deploy.kubernetes.manifests import (
    COMPONENTS,
    K8S,
    OVERLAYS,
    REPOSITORY,
    SCALERS,
    Stack,
    included,
    needs_kubectl,
    render,
)

pytestmark = needs_kubectl


@pytest.mark.parametrize("overlay", OVERLAYS)
@pytest.mark.parametrize("component", COMPONENTS)
def test_every_component_renders_with_every_overlay_and_does_something(overlay: str, component: str) -> None:
    rendered = render(overlay, component)
    if component in included(overlay):
        assert rendered == render(overlay)
    else:
        assert rendered != render(overlay), f"{component} changes nothing in {overlay}"


def test_the_components_are_those_that_are_promised() -> None:
    assert {
        "autoscaling-hpa",
        "autoscaling-keda",
        "gpu",
        "inference-pool",
        "model-init-checksum",
        "model-pvc",
        "monitoring",
        "network-policies",
        "tls-ingress",
        "zmq-sidecar",
    } <= set(COMPONENTS)
    assert set(OVERLAYS) == {"dev-cpu", "prod-gpu"}


@pytest.mark.parametrize(
    "folder", [*(f"components/{name}" for name in COMPONENTS), *(f"overlays/{o}" for o in OVERLAYS)]
)
def test_every_folder_says_what_it_is_for(folder: str) -> None:
    readme = (K8S / folder / "README.md").read_text()
    assert readme.startswith(f"# {folder.rpartition('/')[2]}\n")
    assert 3 <= len(readme.splitlines()) < 40


def test_every_object_is_there_once(stack: Stack) -> None:
    keys = [(one["kind"], one["metadata"]["name"]) for one in stack.documents]
    assert len(keys) == len(set(keys))


def test_everything_is_in_the_one_namespace(stack: Stack) -> None:
    (namespace,) = stack.of_kind("Namespace")
    assert namespace["metadata"]["labels"]["pod-security.kubernetes.io/enforce"] == "restricted"
    for one in stack.documents:
        if one["kind"] != "Namespace":
            assert one["metadata"]["namespace"] == namespace["metadata"]["name"], one["metadata"]["name"]


def test_what_pods_refer_to_exists(stack: Stack) -> None:
    for workload in stack.workloads:
        stack.named("ServiceAccount", workload.pod["serviceAccountName"])
        volumes = {volume["name"]: volume for volume in workload.pod["volumes"]}
        for volume in volumes.values():
            if "configMap" in volume:
                stack.named("ConfigMap", volume["configMap"]["name"])
            if "persistentVolumeClaim" in volume:
                stack.named("PersistentVolumeClaim", volume["persistentVolumeClaim"]["claimName"])
            if "secret" in volume:  # made by hand, as its contents belong into no repository
                assert volume["secret"]["secretName"] == "gateway-keys"
            assert len(volume) == 2, f"{volume} has two sources"
        mounted = {
            mount["name"]
            for container in (*workload.pod["containers"], *workload.pod.get("initContainers", ()))
            for mount in container["volumeMounts"]
        }
        assert mounted == set(volumes), f"{workload.name}: volumes and mounts differ"
        for container in workload.pod["containers"]:
            assert stack.environment(container)
            paths = [mount["mountPath"] for mount in container["volumeMounts"]]
            assert len(paths) == len(set(paths))


def test_images_have_the_version_of_this_repository(stack: Stack) -> None:
    version = tomllib.loads((REPOSITORY / "services/engine/pyproject.toml").read_text())["project"]["version"]
    gpu = "gpu" in stack.components
    expected = {
        "gateway": f"rhizome/gateway:{version}",
        "proxy": f"rhizome/proxy:{version}",
        "engine": f"rhizome/engine:{version}-{'cuda' if gpu else 'cpu'}",
    }
    for workload, container in stack.containers():
        assert container["image"] == expected[container["name"]], workload.name
        for helper in workload.pod.get("initContainers", ()):
            assert helper["image"] == expected["engine"]


def test_scalers_name_what_is_there(stack: Stack) -> None:
    for kind in ("HorizontalPodAutoscaler", "ScaledObject"):
        for scaler in stack.of_kind(kind):
            target = scaler["spec"]["scaleTargetRef"]
            if "zmq-sidecar" in stack.components:
                continue  # scales nothing there, as its README says
            scaled = stack.named(target["kind"], target["name"])
            assert scaled["apiVersion"] == target["apiVersion"]
    assert len([one for name in SCALERS if (one := name) in stack.components]) <= 1


def test_a_scaled_deployment_of_production_leaves_its_number_to_the_scaler() -> None:
    assert "replicas" not in Stack("prod-gpu").named("Deployment", "engine")["spec"]


def test_selectors_find_the_pods_of_their_own(stack: Stack) -> None:
    for workload in stack.workloads:
        selector = workload.manifest["spec"]["selector"]["matchLabels"]
        assert selector.items() <= workload.labels.items()
        others = [one for one in stack.workloads if selector.items() <= one.labels.items()]
        assert others == [workload]
        for constraint in workload.pod["topologySpreadConstraints"]:
            assert constraint["labelSelector"]["matchLabels"] == selector


def test_no_text_is_left_over_from_patches(stack: Stack) -> None:
    for text in _texts(stack.documents):
        assert not re.search(r"\$patch|\bTODO\b", text), text


def _texts(value: Any) -> Iterator[str]:
    if isinstance(value, dict):
        for key, inner in value.items():
            yield str(key)
            yield from _texts(inner)
    elif isinstance(value, list | tuple):
        for inner in value:
            yield from _texts(inner)
    else:
        yield str(value)
