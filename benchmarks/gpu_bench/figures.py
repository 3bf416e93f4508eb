"""What was measured: every figure is written down the moment it is known, so that a kill loses none."""

from __future__ import annotations

import json
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

Outcome = Literal["ok", "failed", "skipped", "timeout"]


class Recorder:
    """Appends records to a file, a JSON object per line.

    Args:
        path: of the file; several processes append to it, one after the other.
    """

    def __init__(self, path: Path) -> None:
        self._path = path

    def put(self, name: str, value: float | int | str, digits: int = 4) -> None:
        """Write a figure down; its unit is the end of its name."""
        shown = float(f"{value:.{digits}g}") if isinstance(value, float) else value
        self._write(kind="figure", name=name, value=shown)
        print(f"    {name:<56} {shown}", flush=True)

    def check(self, name: str, *, passed: bool, detail: str) -> None:
        """Write down whether something computes what it should."""
        self._write(kind="check", name=name, passed=passed, detail=detail)
        if not passed:
            print(f"    WRONG {name}: {detail}", flush=True)

    def table(self, title: str, header: list[str], rows: list[list[str]]) -> None:
        """Write a table down."""
        self._write(kind="table", title=title, header=header, rows=rows)
        print(f"    {title}")
        for row in [header, *rows]:
            print("      " + "  ".join(f"{cell:>12}" for cell in row), flush=True)

    def note(self, text: str) -> None:
        """Write a remark down."""
        self._write(kind="note", text=text)
        print(f"    {text}", flush=True)

    def section(self, name: str, state: str, detail: str = "") -> None:
        """Write down that a section started or how it ended."""
        self._write(kind="section", name=name, state=state, detail=detail, at=time.time())

    def _write(self, **record: Any) -> None:
        with self._path.open("a", encoding="utf-8") as file:
            file.write(json.dumps(record) + "\n")


@dataclass
class Results:
    """All that was written down.

    Attributes:
        figures: by name.
        checks: name, whether it passed, and the error that was found.
        tables: title, header and rows.
        notes: remarks.
        sections: name → (how it ended, details, seconds).
    """

    figures: dict[str, float | int | str] = field(default_factory=dict)
    checks: list[tuple[str, bool, str]] = field(default_factory=list)
    tables: list[tuple[str, list[str], list[list[str]]]] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    sections: dict[str, tuple[str, str, float]] = field(default_factory=dict)

    @classmethod
    def read(cls, path: Path) -> Results:
        """Read what was written so far; a line that was cut off is left out."""
        results, began = cls(), dict[str, float]()
        for line in path.read_text(encoding="utf-8").splitlines() if path.exists() else []:
            try:
                record = json.loads(line)
            except ValueError:
                continue
            results._take(record, began)
        return results

    def _take(self, record: Mapping[str, Any], began: dict[str, float]) -> None:
        kind = record["kind"]
        if kind == "figure":
            self.figures[record["name"]] = record["value"]
        elif kind == "check":
            self.checks.append((record["name"], record["passed"], record["detail"]))
        elif kind == "table":
            title = record["title"]
            self.tables = [table for table in self.tables if table[0] != title]
            self.tables.append((title, record["header"], record["rows"]))
        elif kind == "note":
            if record["text"] not in self.notes:
                self.notes.append(record["text"])
        elif kind == "section":
            name, at = record["name"], record["at"]
            began.setdefault(name, at)
            self.sections[name] = (record["state"], record["detail"], at - began[name])

    def number(self, name: str) -> float | None:
        """A figure, None where there is none."""
        value = self.figures.get(name)
        return float(value) if isinstance(value, int | float) else None

    @property
    def wrong(self) -> list[tuple[str, str]]:
        """Checks that failed."""
        return [(name, detail) for name, passed, detail in self.checks if not passed]
