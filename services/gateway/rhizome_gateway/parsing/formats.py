"""The formats of a model's output by name, and the parser made of them for one answer."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from types import MappingProxyType

from rhizome_gateway.generation.events import ParsedEvent, Text
from rhizome_gateway.parsing import pythonic
from rhizome_gateway.parsing.base import OutputParser
from rhizome_gateway.parsing.hermes import HERMES
from rhizome_gateway.parsing.json_calls import JsonCallParser, Notation
from rhizome_gateway.parsing.llama3_json import LLAMA3_JSON
from rhizome_gateway.parsing.mistral import MISTRAL
from rhizome_gateway.parsing.reasoning import ReasoningMarkers, ReasoningParser


@dataclass(frozen=True, slots=True)
class ToolFormat:
    """A way to write tool calls.

    Attributes:
        name: as in the settings.
        notation: how calls are written; None where they are Python.
    """

    name: str
    notation: Notation | None

    def parser(self, names: Collection[str], *, parallel: bool = True) -> OutputParser:
        """Make the parser for one answer."""
        if self.notation is None:
            return pythonic.PythonicParser(names, parallel=parallel)
        return JsonCallParser(self.notation, names, parallel=parallel)

    @property
    def markers(self) -> frozenset[str]:
        """What must be visible in the text, special token or not."""
        if self.notation is None:
            return frozenset({pythonic.OPENING, pythonic.CLOSING})
        return self.notation.markers

    @property
    def drops_markers(self) -> bool:
        """Whether there are markers to take out of the text even where no tool may be called."""
        return self.notation is not None and bool(self.notation.dropped)


TOOL_FORMATS: Mapping[str, ToolFormat] = MappingProxyType(
    {
        name: ToolFormat(name, notation)
        for name, notation in {
            "hermes": HERMES,
            "llama3_json": LLAMA3_JSON,
            "mistral": MISTRAL,
            "pythonic": None,
        }.items()
    }
)
REASONING_FORMATS: Mapping[str, ReasoningMarkers] = MappingProxyType(
    {
        "think": ReasoningMarkers("<think>", "</think>"),
        "thinking": ReasoningMarkers("<thinking>", "</thinking>"),
        "mistral": ReasoningMarkers("[THINK]", "[/THINK]"),
    }
)


@dataclass(frozen=True, slots=True)
class OutputFormats:
    """How a checkpoint writes tool calls and thinking; None where it does not, or nobody knows how."""

    tools: ToolFormat | None = None
    reasoning: ReasoningMarkers | None = None

    @property
    def visible_markers(self) -> frozenset[str]:
        """Markers that the text must show even where they are special tokens."""
        tools = self.tools.markers if self.tools else frozenset()
        return tools | (self.reasoning.markers if self.reasoning else frozenset())

    def starts_inside(self, prompt: str) -> bool:
        """Whether a rendered prompt ends in an open span of thinking."""
        return self.reasoning is not None and self.reasoning.opened_by(prompt)


class AnswerParser:
    """Splits thinking from the answer, and then tool calls from its text.

    Args:
        reasoning: None where there is no thinking.
        tools: None where there are no tools.
        visible_markers: what the text must show for it, even where it is a special token.
    """

    def __init__(
        self,
        reasoning: ReasoningParser | None,
        tools: OutputParser | None,
        visible_markers: frozenset[str] = frozenset(),
    ) -> None:
        self.visible_markers = visible_markers
        self._reasoning = reasoning
        self._tools = tools

    @property
    def inside(self) -> bool:
        """Whether the text so far ends in thinking; see `ReasoningParser`."""
        return self._reasoning is not None and self._reasoning.inside

    @property
    def reasoning_chars(self) -> int:
        """How many of the characters pushed so far are thinking, markers included."""
        return self._reasoning.reasoning_chars if self._reasoning else 0

    def push(self, text: str) -> Sequence[ParsedEvent]:
        """Take the next piece of text."""
        if self._reasoning is None:
            return self._tools.push(text) if self._tools else (Text(text),)
        return self._without_calls(self._reasoning.push(text))

    def finish(self) -> Sequence[ParsedEvent]:
        """The answer is complete: give out what was held back."""
        events = list(self._without_calls(self._reasoning.finish())) if self._reasoning else []
        return [*events, *self._tools.finish()] if self._tools else events

    def _without_calls(self, events: Sequence[ParsedEvent]) -> Sequence[ParsedEvent]:
        if self._tools is None or not any(isinstance(event, Text) for event in events):
            return events
        return list(self._parsed(events, self._tools))

    @staticmethod
    def _parsed(events: Iterable[ParsedEvent], tools: OutputParser) -> Iterable[ParsedEvent]:
        for event in events:
            if isinstance(event, Text):
                yield from tools.push(event.text)
            else:
                yield event


def output_parser(
    formats: OutputFormats,
    tool_names: Collection[str] = (),
    *,
    parallel: bool = True,
    starts_inside: bool = False,
) -> AnswerParser | None:
    """Make the parser for one answer; None when its text needs none.

    Args:
        formats: of the checkpoint.
        tool_names: the tools that the model may call in this answer; none for `tool_choice: none`.
        parallel: False gives out the first call only.
        starts_inside: whether the prompt opened the thinking, as `OutputFormats.starts_inside` says.
    """
    reasoning = ReasoningParser(formats.reasoning, starts_inside=starts_inside) if formats.reasoning else None
    tools = None
    if formats.tools and (tool_names or formats.tools.drops_markers):
        tools = formats.tools.parser(tool_names, parallel=parallel)
    if reasoning is None and tools is None:
        return None
    used = OutputFormats(formats.tools if tool_names else None, formats.reasoning)
    return AnswerParser(reasoning, tools, used.visible_markers)
