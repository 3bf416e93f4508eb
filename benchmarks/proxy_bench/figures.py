"""What was measured, beside what was hoped for and what others need for it."""

from __future__ import annotations

import statistics
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

OURS = "rhizome"


@dataclass(frozen=True, slots=True)
class Figure:
    """One line of a table.

    Attributes:
        name: what it is, unit included.
        value: ours.
        goal: `<= 1.0`, `>= 0.95`; empty for none.
        peers: what others had in the same run, by name.
        note: what a reader must know.
        ratios: whether ours over theirs means something.
    """

    name: str
    value: float
    goal: str = ""
    peers: Mapping[str, float] = field(default_factory=dict)
    note: str = ""
    ratios: bool = True

    @property
    def met(self) -> bool | None:
        """Whether the goal is reached; `None` without one."""
        if not self.goal:
            return None
        sign, bound = self.goal.split()
        return self.value <= float(bound) if sign == "<=" else self.value >= float(bound)

    def as_json(self) -> dict[str, Any]:
        """All of it."""
        row: dict[str, Any] = {"value": rounded(self.value)}
        if self.goal:
            row |= {"goal": self.goal, "met": self.met}
        if self.peers:
            row["peers"] = {name: rounded(value) for name, value in self.peers.items()}
            if self.ratios:
                ratios = {name: self.value / value for name, value in self.peers.items() if value}
                row["ratio"] = {name: rounded(ratio) for name, ratio in ratios.items()}
        return row | ({"note": self.note} if self.note else {})


def medians(rounds: Sequence[Mapping[str, float]]) -> dict[str, float]:
    """Of several runs, each figure's median."""
    return {name: statistics.median(one[name] for one in rounds) for name in rounds[0]}


def compared(
    name: str, rows: Mapping[str, Mapping[str, float]], key: str, goal: str = "", note: str = ""
) -> Figure:
    """A figure of ours from rows by target, with everybody else's beside it."""
    peers = {target: row[key] for target, row in rows.items() if target != OURS and key in row}
    return Figure(name, rows[OURS][key], goal, peers, note)


def table(section: str, figures: Iterable[Figure]) -> str:
    """For people."""
    lines = [f"\n{section}"]
    for figure in figures:
        verdict = {True: "yes", False: "NO", None: ""}[figure.met]
        beside = "  ".join(
            f"{name} {shown(value)}" + (f" (x{figure.value / value:.2f})" if value and figure.ratios else "")
            for name, value in figure.peers.items()
        )
        lines.append(
            f"  {figure.name:<58}{shown(figure.value):>12}{figure.goal:>12} {verdict:<4}{beside}".rstrip()
        )
        if figure.note:
            lines.append(f"      {figure.note}")
    return "\n".join(lines)


def shown(value: float) -> str:
    """As many digits as mean something."""
    if value == int(value) and abs(value) < 1000:
        return str(int(value))
    return f"{value:,.0f}" if abs(value) >= 1000 else f"{value:.3g}"


def rounded(value: float) -> float:
    """For JSON."""
    return round(value, 4)
