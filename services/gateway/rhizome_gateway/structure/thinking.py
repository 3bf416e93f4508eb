"""A grammar that lets the model think first: free text up to the end marker, then what is asked for."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from rhizome_gateway.parsing.reasoning import ReasoningMarkers
from rhizome_gateway.structure.rules import Rules
from rhizome_grammar.spec import lark_string

_AFTER = r"/\n{1,2}/?"
"""Line breaks that models put behind the marker; readers of the answer drop them."""


@dataclass(frozen=True, slots=True)
class Thinking:
    """How a model shows its thinking.

    Attributes:
        markers: what stands around it.
        starts_inside: the prompt has opened it already, so the answer has to close it. Otherwise the model
            may open it, or answer at once.
    """

    markers: ReasoningMarkers
    starts_inside: bool


def add_start(rules: Rules, body: str, thinking: Thinking | None, marker: Callable[[str], str]) -> None:
    """Add the rule `start`: thinking where there may be some, then `body`.

    Args:
        rules: the grammar so far.
        body: a rule, or alternatives.
        thinking: None where the model does not think.
        marker: writes a marker, which may be a special token of the model, as an element of a rule.
    """
    rules.add("answer", body)
    if thinking is None:
        rules.add("start", "answer")
        return
    closing = marker(thinking.markers.closing)
    if closing.startswith("<"):
        # Free text never holds special tokens, so it ends at the first of them.
        rules.add("thought", f"/(?s:.*)/ {closing}")
    else:
        rules.add(f"thought[suffix={lark_string(thinking.markers.closing)}]", "/(?s:.*)/")
    if thinking.starts_inside:
        rules.add("start", f"thought {_AFTER} answer")
    else:
        rules.add("start", f"({marker(thinking.markers.opening)} thought {_AFTER})? answer")
