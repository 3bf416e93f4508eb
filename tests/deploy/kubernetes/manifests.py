"""What `kubectl kustomize` makes of `deploy/k8s`, and how Kubernetes would read it."""

from __future__ import annotations

import functools
import json
import os
import shutil
import subprocess
import tempfile
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import yaml

Manifest = dict[str, Any]

REPOSITORY = Path(__file__).parents[3]
K8S = REPOSITORY / "deploy" / "k8s"
OVERLAYS = tuple(sorted(path.name for path in (K8S / "overlays").iterdir()))
COMPONENTS = tuple(sorted(path.name for path in (K8S / "components").iterdir()))
SCALERS = ("autoscaling-hpa", "autoscaling-keda")

OLDEST_KUSTOMIZE = 5


def _kustomize_version() -> int:
    """That of `kubectl`; 0 where there is none, or none that tells."""
    if shutil.which("kubectl") is None:
        return 0
    command = ["kubectl", "version", "--client", "-o", "json"]
    told = subprocess.run(command, capture_output=True, text=True, timeout=60).stdout
    return int(json.loads(told).get("kustomizeVersion", "v0").removeprefix("v").partition(".")[0])


needs_kubectl = pytest.mark.skipif(
    _kustomize_version() < OLDEST_KUSTOMIZE,
    reason=f"needs kubectl with kustomize {OLDEST_KUSTOMIZE} or later (kubectl 1.27)",
)


def included(overlay: str) -> list[str]:
    """Components that an overlay has already."""
    document = yaml.safe_load((K8S / "overlays" / overlay / "kustomization.yaml").read_text())
    return [Path(path).name for path in document.get("components", ())]


@functools.cache
def render(overlay: str, component: str = "") -> tuple[Manifest, ...]:
    """All objects of an overlay, with one more component if it is not there yet, as a user would add it."""
    folder = K8S / "overlays" / overlay
    if not component or component in included(overlay):
        return _kustomize(folder)
    with tempfile.TemporaryDirectory(prefix="rhizome-k8s-") as made:
        copy = Path(made).resolve()
        extended = yaml.safe_load((folder / "kustomization.yaml").read_text())
        # First of all components: others may change what it brings.
        extended["components"] = [f"../../components/{component}", *extended["components"]]
        for kind in ("resources", "components"):
            extended[kind] = [os.path.relpath((folder / path).resolve(), copy) for path in extended[kind]]
        (copy / "kustomization.yaml").write_text(yaml.safe_dump(extended))
        return _kustomize(copy)


def _kustomize(folder: Path) -> tuple[Manifest, ...]:
    done = subprocess.run(["kubectl", "kustomize", str(folder)], capture_output=True, text=True, timeout=60)
    assert not done.returncode, f"kubectl kustomize {folder}: {done.stderr}"
    assert not done.stderr, f"kubectl kustomize {folder} warns: {done.stderr}"
    return tuple(document for document in yaml.safe_load_all(done.stdout) if document)


@dataclass(frozen=True)
class Workload:
    """A Deployment and what its pods are given.

    Attributes:
        name: its name.
        manifest: all of it.
        pod: the pods' spec.
        labels: the pods'.
    """

    name: str
    manifest: Manifest
    pod: Manifest
    labels: Mapping[str, str]

    def container(self, name: str) -> Manifest:
        """One of its containers."""
        return next(one for one in self.pod["containers"] if one["name"] == name)


class Stack:
    """One rendering.

    Args:
        overlay: its name.
        component: one more component, or none.
    """

    def __init__(self, overlay: str, component: str = "") -> None:
        self.name = f"{overlay}+{component}" if component else overlay
        self.components = {*included(overlay), *([component] if component else [])}
        self.documents = render(overlay, component)

    def of_kind(self, kind: str) -> list[Manifest]:
        """All objects of a kind."""
        return [one for one in self.documents if one["kind"] == kind]

    def named(self, kind: str, name: str) -> Manifest:
        """The object of that name."""
        found = [one for one in self.of_kind(kind) if one["metadata"]["name"] == name]
        assert len(found) == 1, f"{self.name} has {len(found)} objects {kind}/{name}"
        return found[0]

    @property
    def workloads(self) -> list[Workload]:
        """Its Deployments."""
        found = []
        for manifest in self.of_kind("Deployment"):
            template = manifest["spec"]["template"]
            name = manifest["metadata"]["name"]
            found.append(Workload(name, manifest, template["spec"], template["metadata"]["labels"]))
        assert found
        return found

    def containers(self) -> Iterator[tuple[Workload, Manifest]]:
        """Every container that serves, with whose it is."""
        for workload in self.workloads:
            for container in workload.pod["containers"]:
                yield workload, container

    def environment(self, container: Manifest) -> dict[str, str]:
        """The variables that a container sees, as kubelet puts them together."""
        variables: dict[str, str] = {}
        for source in container.get("envFrom", ()):
            variables |= self.named("ConfigMap", source["configMapRef"]["name"])["data"]
        for entry in container.get("env", ()):
            if "value" in entry:
                variables[entry["name"]] = entry["value"]
            else:
                key = entry["valueFrom"]["configMapKeyRef"]
                variables[entry["name"]] = self.named("ConfigMap", key["name"])["data"][key["key"]]
        return variables

    def behind(self, service: Manifest) -> list[Workload]:
        """Whose pods a Service, or anything with such a selector, finds."""
        selector = service["spec"]["selector"]
        selector = selector.get("matchLabels", selector)
        return [one for one in self.workloads if selector.items() <= one.labels.items()]


def all_stacks() -> list[tuple[str, str]]:
    """Every overlay alone, and with each component that it lacks.

    Two scalers of one Deployment would fight, so one is not added to the other.
    """
    combinations = []
    for overlay in OVERLAYS:
        combinations.append((overlay, ""))
        has = set(included(overlay))
        for component in COMPONENTS:
            fights = component in SCALERS and has & set(SCALERS)
            if component not in has and not fights:
                combinations.append((overlay, component))
    return combinations
