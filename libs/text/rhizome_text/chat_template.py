"""Conversations to prompts: the checkpoint's Jinja template in a sandbox.

The environment is the one that `transformers` documents for chat templates, so that templates written for
it render alike: trimmed blocks, loop controls, `tojson` without HTML escaping, `raise_exception` and
`strftime_now`. A checkpoint is somebody else's file, hence the immutable sandbox: no attribute of Python's
internals, no mutation of what is passed in.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from datetime import datetime
from typing import Any, NoReturn

import jinja2
from jinja2 import nodes
from jinja2.ext import Extension
from jinja2.parser import Parser
from jinja2.sandbox import ImmutableSandboxedEnvironment


class ChatTemplateError(ValueError):
    """The template is broken or refuses the conversation; the message is fit for the one who asked."""


class _GenerationBlock(Extension):
    """`{% generation %}` marks the assistant's words for training; here it is only its content."""

    tags = {"generation"}  # noqa: RUF012 - jinja2's interface

    def parse(self, parser: Parser) -> nodes.Node | list[nodes.Node]:
        """Parse to a block without effect."""
        line = next(parser.stream).lineno
        return nodes.Scope(parser.parse_statements(("name:endgeneration",), drop_needle=True), lineno=line)


class ChatTemplate:
    """A compiled chat template.

    Attributes:
        source: the template's text.
    """

    def __init__(
        self, source: str, bos_token: str | None = None, eos_token: str | None = None, **special_tokens: str
    ) -> None:
        """Compile the template.

        Raises:
            ChatTemplateError: a syntax error.
        """
        self.source = source
        self._tokens = {"bos_token": bos_token or "", "eos_token": eos_token or "", **special_tokens}
        try:
            self._template = _environment().from_string(source)
        except jinja2.TemplateSyntaxError as error:
            raise ChatTemplateError(
                f"the model's chat template is broken, line {error.lineno}: {error.message}"
            ) from error

    def render(
        self,
        messages: Sequence[Mapping[str, Any]],
        tools: Sequence[Mapping[str, Any]] | None = None,
        add_generation_prompt: bool = True,
        **kwargs: Any,
    ) -> str:
        """Write a conversation as one prompt, the begin-of-sequence token included where the template has it.

        Args:
            messages: oldest first; `content` is text, `tool_calls[].function.arguments` an object.
            tools: as in the OpenAI API; None hides them.
            add_generation_prompt: end with the opening of the assistant's turn.
            **kwargs: variables that this template knows, such as `enable_thinking`.

        Raises:
            ChatTemplateError: the template refused the conversation or failed.
        """
        try:
            return self._template.render(
                **{
                    **self._tokens,
                    **kwargs,
                    "messages": messages,
                    "tools": tools,
                    "add_generation_prompt": add_generation_prompt,
                }
            )
        except jinja2.TemplateError as error:
            raise ChatTemplateError(f"the model's chat template refused the messages: {error}") from error
        except Exception as error:  # templates do arithmetic and subscripts on whatever they are given
            raise ChatTemplateError(
                f"the model's chat template failed on the messages: {type(error).__name__}: {error}"
            ) from error


def _environment() -> ImmutableSandboxedEnvironment:
    environment = ImmutableSandboxedEnvironment(
        trim_blocks=True,
        lstrip_blocks=True,
        extensions=[_GenerationBlock, "jinja2.ext.loopcontrols"],
    )
    environment.filters["tojson"] = _tojson
    environment.globals["raise_exception"] = _raise_exception
    environment.globals["strftime_now"] = _strftime_now
    return environment


def _tojson(
    value: Any,
    ensure_ascii: bool = False,
    indent: int | None = None,
    separators: tuple[str, str] | None = None,
    sort_keys: bool = False,
) -> str:
    return json.dumps(
        value, ensure_ascii=ensure_ascii, indent=indent, separators=separators, sort_keys=sort_keys
    )


def _raise_exception(message: str) -> NoReturn:
    raise jinja2.TemplateError(message)


def _strftime_now(form: str) -> str:
    return datetime.now().strftime(form)
