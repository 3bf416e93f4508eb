"""Items of the output while they grow: what each says in the stream, and what it is in the end.

    message         content_part.added, output_text.delta…, output_text.done, content_part.done
    reasoning       content_part.added, reasoning_text.delta…, reasoning_text.done, content_part.done
    function call   function_call_arguments.delta…, function_call_arguments.done
    custom call     custom_tool_call_input.delta, custom_tool_call_input.done

between `output_item.added` and `output_item.done`.
"""

from __future__ import annotations

from typing import Any, Protocol

from pydantic_core import from_json

from rhizome_gateway.generation.events import CallBegun
from rhizome_gateway.openai.responses.carried_reasoning import carried
from rhizome_gateway.openai.responses.objects import new_id
from rhizome_gateway.openai.responses.sse import NumberedEvents, delta_head
from rhizome_gateway.openai.responses.tools import Tool

IN_PROGRESS = "in_progress"


class OutputItem(Protocol):
    """One item."""

    def begin(self) -> bytes:
        """The events that open it."""
        ...

    def more(self, text: str) -> bytes:
        """The events for the next piece of its text."""
        ...

    def end(self, status: str) -> bytes:
        """The events that close it."""
        ...

    def object(self, status: str) -> dict[str, Any]:
        """The item with all its text so far."""
        ...


class _Item:
    """What all have: a place in the output, and events that say so."""

    def __init__(self, events: NumberedEvents, index: int, prefix: str) -> None:
        self._events = events
        self._index = index
        self._id = new_id(prefix)
        self._texts: list[str] = []

    @property
    def _text(self) -> str:
        return "".join(self._texts)

    def _item_event(self, name: str, item: dict[str, Any]) -> bytes:
        return self._events.write(f"response.output_item.{name}", output_index=self._index, item=item)

    def _event(self, kind: str, /, **fields: Any) -> bytes:
        return self._events.write(f"response.{kind}", item_id=self._id, output_index=self._index, **fields)

    def _delta_head(self, kind: str, /, **fields: Any) -> bytes:
        return delta_head(f"response.{kind}", item_id=self._id, output_index=self._index, **fields)


class MessageItem(_Item):
    """Text of the answer."""

    def __init__(self, events: NumberedEvents, index: int) -> None:
        super().__init__(events, index, "msg")
        self._logprobs: list[dict[str, Any]] = []
        self._head = self._delta_head("output_text.delta", content_index=0, logprobs=[])

    def begin(self) -> bytes:
        """The message and its one part."""
        opened = self._item_event("added", self.object(IN_PROGRESS) | {"content": []})
        return opened + self._event("content_part.added", content_index=0, part=self._part())

    def more(self, text: str) -> bytes:
        """A delta."""
        self._texts.append(text)
        return self._events.write_delta(self._head, text)

    def more_scored(self, text: str, logprobs: list[dict[str, Any]]) -> bytes:
        """A delta with log probabilities."""
        self._texts.append(text)
        self._logprobs += logprobs
        return self._event("output_text.delta", content_index=0, delta=text, logprobs=logprobs)

    def end(self, status: str) -> bytes:
        """The text once more, its part, and the message."""
        part = self._part()
        return b"".join(
            (
                self._event(
                    "output_text.done", content_index=0, text=part["text"], logprobs=part["logprobs"]
                ),
                self._event("content_part.done", content_index=0, part=part),
                self._item_event("done", self.object(status)),
            )
        )

    def object(self, status: str) -> dict[str, Any]:
        """A `message`."""
        return {
            "id": self._id,
            "type": "message",
            "status": status,
            "role": "assistant",
            "content": [self._part()],
        }

    def _part(self) -> dict[str, Any]:
        return {"type": "output_text", "annotations": [], "logprobs": self._logprobs, "text": self._text}


class ReasoningItem(_Item):
    """Thinking.

    Args:
        events: of the stream.
        index: in the output.
        carry: give the text as `encrypted_content` too.
    """

    def __init__(self, events: NumberedEvents, index: int, *, carry: bool) -> None:
        super().__init__(events, index, "rs")
        self._carry = carry
        self._head = self._delta_head("reasoning_text.delta", content_index=0)

    def begin(self) -> bytes:
        """The item and its one part."""
        opened = self._item_event("added", self.object(IN_PROGRESS) | {"content": []})
        return opened + self._event("content_part.added", content_index=0, part=self._part())

    def more(self, text: str) -> bytes:
        """A delta."""
        self._texts.append(text)
        return self._events.write_delta(self._head, text)

    def end(self, status: str) -> bytes:
        """The text once more, its part, and the item."""
        part = self._part()
        return b"".join(
            (
                self._event("reasoning_text.done", content_index=0, text=part["text"]),
                self._event("content_part.done", content_index=0, part=part),
                self._item_event("done", self.object(status)),
            )
        )

    def object(self, status: str) -> dict[str, Any]:
        """A `reasoning`."""
        item = {
            "id": self._id,
            "type": "reasoning",
            "status": status,
            "summary": [],
            "content": [self._part()],
        }
        if self._carry and status != IN_PROGRESS:
            item["encrypted_content"] = carried(self._text)
        return item

    def _part(self) -> dict[str, Any]:
        return {"type": "reasoning_text", "text": self._text}


class FunctionCallItem(_Item):
    """A call of a function."""

    def __init__(self, events: NumberedEvents, index: int, call: CallBegun, tool: Tool) -> None:
        super().__init__(events, index, "fc")
        self._call_id = call.id
        self._tool = tool
        self._head = self._delta_head("function_call_arguments.delta")

    def begin(self) -> bytes:
        """The item, without arguments."""
        return self._item_event("added", self.object(IN_PROGRESS))

    def more(self, text: str) -> bytes:
        """A delta of the arguments."""
        self._texts.append(text)
        return self._events.write_delta(self._head, text)

    def end(self, status: str) -> bytes:
        """The arguments once more, and the item."""
        done = self._event("function_call_arguments.done", name=self._tool.name, arguments=self._text)
        return done + self._item_event("done", self.object(status))

    def object(self, status: str) -> dict[str, Any]:
        """A `function_call`."""
        item = {
            "id": self._id,
            "type": "function_call",
            "status": status,
            "call_id": self._call_id,
            "name": self._tool.name,
            "arguments": self._text,
        }
        return item if self._tool.namespace is None else item | {"namespace": self._tool.namespace}


class CustomCallItem(_Item):
    """A call of a custom tool: its input is a string inside of the arguments that the model writes.

    It is given out in one piece, when it is complete.
    """

    def __init__(self, events: NumberedEvents, index: int, call: CallBegun, tool: Tool) -> None:
        super().__init__(events, index, "ctc")
        self._call_id = call.id
        self._tool = tool

    def begin(self) -> bytes:
        """The item, without input."""
        return self._item_event("added", self.object(IN_PROGRESS))

    def more(self, text: str) -> bytes:
        """Nothing yet."""
        self._texts.append(text)
        return b""

    def end(self, status: str) -> bytes:
        """The input, and the item."""
        given = self._input()
        return b"".join(
            (
                self._event("custom_tool_call_input.delta", delta=given) if given else b"",
                self._event("custom_tool_call_input.done", input=given),
                self._item_event("done", self.object(status)),
            )
        )

    def object(self, status: str) -> dict[str, Any]:
        """A `custom_tool_call`."""
        item = {
            "id": self._id,
            "type": "custom_tool_call",
            "status": status,
            "call_id": self._call_id,
            "name": self._tool.name,
            "input": self._input(),
        }
        return item if self._tool.namespace is None else item | {"namespace": self._tool.namespace}

    def _input(self) -> str:
        """The string, or what there is of one that was cut off."""
        try:
            arguments = from_json(self._text, allow_partial="trailing-strings")
        except ValueError:
            return ""
        given = arguments.get("input") if isinstance(arguments, dict) else None
        return given if isinstance(given, str) else ""
