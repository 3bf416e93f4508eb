import re
from collections.abc import Iterable
from dataclasses import dataclass, field

from hypothesis import strategies as st

from rhizome_gateway.generation.events import CallArguments, CallBegun, ParsedEvent, Reasoning, Text
from rhizome_gateway.parsing.base import OutputParser

JSON = st.recursive(
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats(allow_nan=False, allow_infinity=False)
    | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=4), inner, max_size=3),
    max_leaves=8,
)
ARGUMENTS = st.dictionaries(st.text(max_size=6), JSON, max_size=4)


@dataclass
class Outcome:
    """What a client has after all events of an answer."""

    text: str = ""
    reasoning: str = ""
    calls: list[tuple[str, str]] = field(default_factory=list)

    def add(self, events: Iterable[ParsedEvent]) -> None:
        for event in events:
            if isinstance(event, Text):
                assert event.text
                self.text += event.text
            elif isinstance(event, Reasoning):
                assert event.text
                self.reasoning += event.text
            elif isinstance(event, CallBegun):
                assert event.call == len(self.calls)
                assert re.fullmatch("call_[0-9a-f]{24}", event.id)
                self.calls.append((event.name, ""))
            else:
                assert isinstance(event, CallArguments) and event.text
                assert event.call == len(self.calls) - 1
                name, arguments = self.calls[-1]
                self.calls[-1] = (name, arguments + event.text)


def outcome(parser: OutputParser, pieces: Iterable[str]) -> Outcome:
    result = Outcome()
    for piece in pieces:
        result.add(parser.push(piece))
    result.add(parser.finish())
    return result


@st.composite
def cut(draw: st.DrawFn, text: str) -> list[str]:
    cuts = sorted(draw(st.sets(st.integers(0, len(text)), max_size=12)))
    return [text[a:b] for a, b in zip([0, *cuts], [*cuts, len(text)], strict=True)]
