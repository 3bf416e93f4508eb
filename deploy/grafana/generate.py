"""Writes `dashboards/*.json` from `source/*.yaml`: `python deploy/grafana/generate.py`.

A dashboard is rows of panels; a panel has a title, a unit and queries by legend, or a histogram whose
quantiles are shown. Whoever changes one changes its source; a test sees to it that the files are what this
writes, and that every query names metrics that services have.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import yaml

SOURCES = Path(__file__).parent / "source"
FOLDER = Path(__file__).parent / "dashboards"

DATA_SOURCE = {"type": "prometheus", "uid": "${datasource}"}
COLUMNS = 24
HEIGHT = 8
QUANTILES = {"p50": 0.5, "p95": 0.95, "p99": 0.99}


def render(name: str, source: dict[str, Any]) -> str:
    """The content of a dashboard's file.

    Args:
        name: of the file, without suffix.
        source: as its YAML has it.
    """
    document = {
        "uid": f"rhizome-{name}",
        "title": source["title"],
        "tags": ["rhizome"],
        "schemaVersion": 39,
        "editable": False,
        "graphTooltip": 1,
        "refresh": "15s",
        "time": {"from": "now-1h", "to": "now"},
        "templating": {"list": list(_variables(source.get("variables", {})))},
        "panels": list(_panels(source["rows"])),
    }
    return json.dumps(document, indent=1) + "\n"


def _variables(queries: dict[str, str]) -> Iterator[dict[str, Any]]:
    yield {"name": "datasource", "type": "datasource", "query": "prometheus", "label": "Prometheus"}
    for name, query in queries.items():
        yield {
            "name": name,
            "type": "query",
            "datasource": DATA_SOURCE,
            "query": {"query": query, "refId": name},
            "refresh": 2,
            "includeAll": True,
            "multi": True,
            "allValue": ".*",
            "current": {"text": "All", "value": "$__all"},
        }


def _panels(rows: list[dict[str, Any]]) -> Iterator[dict[str, Any]]:
    """Rows of panels from left to right, broken where the next one does not fit."""
    number, top = 1, 0
    for row in rows:
        place = _place(0, top, COLUMNS, 1)
        yield {"id": number, "type": "row", "title": row["title"], "collapsed": False, "gridPos": place}
        number, top, left = number + 1, top + 1, 0
        for panel in row["panels"]:
            width = panel.get("width", 8)
            if left + width > COLUMNS:
                left, top = 0, top + HEIGHT
            yield _panel(panel, number, _place(left, top, width, HEIGHT))
            number, left = number + 1, left + width
        top += HEIGHT


def _panel(panel: dict[str, Any], number: int, place: dict[str, int]) -> dict[str, Any]:
    return {
        "id": number,
        "type": panel.get("kind", "timeseries"),
        "title": panel["title"],
        "description": panel.get("text", ""),
        "datasource": DATA_SOURCE,
        "gridPos": place,
        "fieldConfig": {"defaults": {"unit": panel["unit"], "min": 0}, "overrides": []},
        "targets": [
            {"refId": chr(ord("A") + index), "expr": query, "legendFormat": legend, "datasource": DATA_SOURCE}
            for index, (legend, query) in enumerate(_queries(panel).items())
        ],
    }


def _queries(panel: dict[str, Any]) -> dict[str, str]:
    if "queries" in panel:
        return dict(panel["queries"])
    histogram, brace, labels = panel["quantiles"].partition("{")
    buckets = f"sum by (le) (rate({histogram}_bucket{brace}{labels}[$__rate_interval]))"
    return {name: f"histogram_quantile({share}, {buckets})" for name, share in QUANTILES.items()}


def _place(x: int, y: int, width: int, height: int) -> dict[str, int]:
    return {"x": x, "y": y, "w": width, "h": height}


def main() -> None:
    """Write them."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, default=FOLDER)
    folder: Path = parser.parse_args().out
    folder.mkdir(parents=True, exist_ok=True)
    for source in sorted(SOURCES.glob("*.yaml")):
        text = render(source.stem, yaml.safe_load(source.read_text()))
        (folder / f"{source.stem}.json").write_text(text)


if __name__ == "__main__":
    main()
