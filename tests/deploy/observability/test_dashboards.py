"""Grafana's dashboards: written from their sources, and every query is one that Prometheus understands."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml
from tests.deploy.observability.conftest import DEPLOY, JOBS, Prometheus, Watched, series
from tests.deploy.observability.test_prometheus import all_groups, names_in

GRAFANA = DEPLOY / "grafana"
DASHBOARDS = sorted((GRAFANA / "dashboards").glob("*.json"))


def queries(dashboard: dict[str, Any]) -> Iterator[str]:
    """What its panels ask."""
    for panel in dashboard["panels"]:
        for target in panel.get("targets", ()):
            yield target["expr"]


def test_the_files_are_what_their_sources_give(tmp_path: Path) -> None:
    subprocess.run([sys.executable, str(GRAFANA / "generate.py"), "--out", str(tmp_path)], check=True)
    made = {path.name: path.read_text() for path in tmp_path.iterdir()}
    assert made == {path.name: path.read_text() for path in DASHBOARDS}


def test_there_is_one_for_each_service_the_whole_and_the_tenants() -> None:
    assert {path.stem for path in DASHBOARDS} == {"overview", "gateway", "proxy", "engine", "tenants"}
    documents = [json.loads(path.read_text()) for path in DASHBOARDS]
    assert len({document["uid"] for document in documents}) == len(documents)
    for document in documents:
        ids = [panel["id"] for panel in document["panels"]]
        assert len(ids) == len(set(ids))
        places = [panel["gridPos"] for panel in document["panels"]]
        cells = [
            (x, y)
            for place in places
            for x in range(place["x"], place["x"] + place["w"])
            for y in range(place["y"], place["y"] + place["h"])
        ]
        assert len(cells) == len(set(cells)) and max(x for x, _ in cells) < 24, "panels do not overlap"


@pytest.mark.parametrize("path", DASHBOARDS, ids=lambda path: path.stem)
def test_every_query_parses_and_names_what_exists(
    path: Path, watched: Watched, prometheus: Prometheus
) -> None:
    known = {name for job in JOBS for name in series(watched.page(job))} | {"up", "ALERTS"}
    known |= {rule["record"] for group in all_groups() for rule in group["rules"] if "record" in rule}
    document = json.loads(path.read_text())
    variables = {one["name"]: one["query"]["query"] for one in document["templating"]["list"][1:]}
    for query in variables.values():
        selected = re.fullmatch(r"label_values\((.*), \w+\)", query)
        assert selected is not None and names_in(selected[1]) <= known, query
    for query in queries(document):
        used = set(re.findall(r"\$(\w+)", query))
        assert used <= {*variables, "__rate_interval"}, query
        whole = re.sub(r"\$(?!__)\w+", ".*", query.replace("$__rate_interval", "5m"))
        assert names_in(whole) <= known, query
        prometheus.api("query", query=whole)


def test_provisioning_points_at_what_there_is() -> None:
    (source, *_) = yaml.safe_load((GRAFANA / "provisioning/datasources/datasources.yaml").read_text())[
        "datasources"
    ]
    assert (source["uid"], source["url"]) == ("prometheus", "http://prometheus:9090")
    (provider,) = yaml.safe_load((GRAFANA / "provisioning/dashboards/dashboards.yaml").read_text())[
        "providers"
    ]
    assert provider["options"]["path"] == "/var/lib/grafana/dashboards"
