"""Which formats a checkpoint writes: by the settings, else by what it says about itself.

In this order: a name from the settings; the checkpoint's `response_template`, if we understand it; markers
in its chat template and among its special tokens; Llama's JSON where a template at least mentions tools.
"""

from __future__ import annotations

import re
from collections.abc import Collection
from typing import TypeVar

from rhizome_gateway.parsing.formats import (
    REASONING_FORMATS,
    TOOL_FORMATS,
    OutputFormats,
    ToolFormat,
)
from rhizome_gateway.parsing.reasoning import ReasoningMarkers
from rhizome_gateway.parsing.response_template import read_response_template

AUTO = "auto"
NONE = "none"
RESPONSE_TEMPLATE = "response_template"

_UNKNOWN_NOTATIONS = (
    "<function=",  # Qwen 3 Coder, Qwen 3.5: XML
    "<arg_key>",  # GLM
    "<|tool_call>",  # Gemma 4
    "<|tool_call|>",  # Phi 4 mini, Granite
    "<|tool_calls_section_begin|>",  # Kimi
    "<\uff5ctool\u2581calls\u2581begin\uff5c>",  # DeepSeek
    "<\uff5cDSML\uff5c",  # DeepSeek
    "<|START_ACTION|>",  # Command
    "<|channel|>",  # gpt-oss
    "<minimax:tool_call>",
    "<longcat_tool_call>",
)
"""Notations of tool calls that none of our formats reads; text that has them had better stay text."""

_Format = TypeVar("_Format", ToolFormat, ReasoningMarkers)

_TOOLS = re.compile(r"\btools\b")


class UnknownFormatError(ValueError):
    """A setting names a format that does not exist, or that the checkpoint does not have."""


def choose_formats(
    chat_template: str,
    *,
    special_tokens: Collection[str] = (),
    response_template: object = None,
    tool_parser: str = AUTO,
    reasoning_parser: str = AUTO,
) -> OutputFormats:
    """Choose how a checkpoint's output is parsed.

    Args:
        chat_template: its source, of all its templates if there are several; empty without one.
        special_tokens: their texts.
        response_template: from `tokenizer_config.json`; None without one.
        tool_parser: `auto`, `none`, `response_template` or a name from `TOOL_FORMATS`; `-` is as good as `_`.
        reasoning_parser: `auto`, `none`, `response_template` or a name from `REASONING_FORMATS`.

    Raises:
        UnknownFormatError: there is no such format.
    """
    declared = read_response_template(response_template)
    detected = OutputFormats(
        detect_tools(chat_template, special_tokens), detect_reasoning(chat_template, special_tokens)
    )
    tool_name, reasoning_name = tool_parser.replace("-", "_"), reasoning_parser.replace("-", "_")
    tools: ToolFormat | None
    reasoning: ReasoningMarkers | None
    if tool_name == AUTO:
        tools = declared.tools if declared else detected.tools
    elif tool_name == RESPONSE_TEMPLATE:
        tools = _declared(declared, "tool-parser").tools
    else:
        tools = _named(TOOL_FORMATS.get(tool_name), tool_name, "tool-parser", TOOL_FORMATS)
    if reasoning_name == AUTO:
        reasoning = declared.reasoning if declared else detected.reasoning
    elif reasoning_name == RESPONSE_TEMPLATE:
        reasoning = _declared(declared, "reasoning-parser").reasoning
    else:
        reasoning = _named(
            REASONING_FORMATS.get(reasoning_name), reasoning_name, "reasoning-parser", REASONING_FORMATS
        )
    return OutputFormats(tools, reasoning)


def detect_tools(chat_template: str, special_tokens: Collection[str] = ()) -> ToolFormat | None:
    """Guess the notation of tool calls; None where it is none of ours."""
    if "[TOOL_CALLS]" in chat_template or "[TOOL_CALLS]" in special_tokens:
        return TOOL_FORMATS["mistral"]
    if any(marker in chat_template for marker in _UNKNOWN_NOTATIONS):
        return None
    if "<tool_call>" in chat_template:
        return TOOL_FORMATS["hermes"]
    # What Llama's templates tell the model about its format, in so many words.
    if "func_name1(" in chat_template:
        return TOOL_FORMATS["pythonic"]
    return TOOL_FORMATS["llama3_json"] if _TOOLS.search(chat_template) else None


def detect_reasoning(chat_template: str, special_tokens: Collection[str] = ()) -> ReasoningMarkers | None:
    """Guess the markers around thinking; None where there seem to be none."""
    for markers in REASONING_FORMATS.values():
        if markers.closing in chat_template or markers.closing in special_tokens:
            return markers
    return None


def _declared(declared: OutputFormats | None, setting: str) -> OutputFormats:
    if declared is None:
        raise UnknownFormatError(
            f"--{setting} is response_template, but tokenizer_config.json has none that is understood here. "
            f"Take {AUTO}, {NONE} or the name of a format."
        )
    return declared


def _named(format_: _Format | None, name: str, setting: str, known: Collection[str]) -> _Format | None:
    if format_ is None and name != NONE:
        raise UnknownFormatError(
            f"--{setting} {name} is unknown; it may be {', '.join([AUTO, NONE, *known, RESPONSE_TEMPLATE])}."
        )
    return format_
