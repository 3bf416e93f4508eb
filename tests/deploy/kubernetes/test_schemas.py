"""Kubernetes' own objects by its published schemas, strictly: an unknown field is an error."""

from __future__ import annotations

import copy
import functools
import json

import kubernetes_validate
import pytest
from kubernetes_validate import utils
from tests.deploy.kubernetes.manifests import Stack, all_stacks, needs_kubectl

pytestmark = needs_kubectl

OLDEST, NEWEST = "1.30", "1.37"
"""1.30 is the first with the preStop action `sleep`."""

CUSTOM = {"ScaledObject", "ServiceMonitor", "InferencePool"}
"""Kinds of others; see test_custom_resources.py."""


@pytest.mark.parametrize("version", [OLDEST, NEWEST])
def test_objects_are_as_kubernetes_wants_them(version: str, monkeypatch: pytest.MonkeyPatch) -> None:
    # It would read all of Kubernetes' definitions anew for each object.
    monkeypatch.setattr(utils, "schema_contents", functools.cache(utils.schema_contents))
    # Most objects are the same in many renderings.
    distinct = {json.dumps(one, sort_keys=True) for names in all_stacks() for one in Stack(*names).documents}
    kinds = set()
    for text in distinct:
        document = json.loads(text)
        kinds.add(document["kind"])
        if document["kind"] not in CUSTOM:
            kubernetes_validate.validate(document, version, strict=True)
    assert kinds >= CUSTOM | {"Deployment", "Service", "NetworkPolicy", "Ingress", "HorizontalPodAutoscaler"}


def test_a_misspelt_field_is_found() -> None:
    wrong = copy.deepcopy(Stack("dev-cpu").named("Deployment", "engine"))
    probe = wrong["spec"]["template"]["spec"]["containers"][0]["startupProbe"]
    probe["failureTreshold"] = probe.pop("failureThreshold")
    with pytest.raises(kubernetes_validate.ValidationError, match="failureTreshold"):
        kubernetes_validate.validate(wrong, NEWEST, strict=True)
