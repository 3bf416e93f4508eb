"""Conversations to prompts: the checkpoint's Jinja template in a sandbox, within limits.

A checkpoint is somebody else's file, hence the immutable sandbox: no attribute of Python's internals, no
mutation of what is passed in. `render` is the only way through, so that its limits on time and size hold for
every caller.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import cache
from typing import Any

import jinja2
from jinja2 import nodes
from jinja2.runtime import Context, Macro

from rhizome_text.template_budget import TemplateLimitError, TemplateLimits, spending
from rhizome_text.template_sandbox import ChatTemplateEnvironment, TemplateRefusalError

MAX_SOURCE_CHARS = 2**20
"""Longest template; real ones have up to 50,000 characters."""

REASONING_NAMES = ("reasoning_content", "thinking", "reasoning")
"""Keys under which templates look for an assistant message's reasoning."""

_END_OF_CONTENT = "\ufdef "
"""Marks where the last message ends. The space tells whether the template trims: then it is gone, and so is
what the message itself had there."""


class ChatTemplateError(ValueError):
    """The template is broken or refuses the conversation; the message is fit for the one who asked."""


class PromptTooLongError(ChatTemplateError):
    """The prompt has more characters than were allowed.

    Attributes:
        chars: how many it has.
    """

    def __init__(self, chars: int) -> None:
        super().__init__(f"the rendered conversation has {chars} characters, which is too long")
        self.chars = chars


class ChatTemplate:
    """A compiled chat template.

    Attributes:
        source: the template's text.
        literals: the texts that the template itself can write.
        limits: of each render.
    """

    def __init__(
        self,
        source: str,
        bos_token: str | None = None,
        eos_token: str | None = None,
        **special_tokens: str,
    ) -> None:
        """Compile the template.

        Raises:
            ChatTemplateError: a syntax error.
        """
        self.source = source
        self.limits = TemplateLimits()
        tokens = {"bos_token": bos_token, "eos_token": eos_token, **special_tokens}
        self._tokens = {name: token for name, token in tokens.items() if token is not None}
        if len(source) > MAX_SOURCE_CHARS:
            raise ChatTemplateError(
                f"the model's chat template has {len(source)} characters, at most {MAX_SOURCE_CHARS} are read"
            )
        try:
            with spending(self.limits):
                self._template = _environment().from_string(source)
                tree = _environment().parse(source)
        except jinja2.TemplateSyntaxError as error:
            raise ChatTemplateError(
                f"the model's chat template is broken, line {error.lineno}: {error.message}"
            ) from error
        except (jinja2.TemplateError, RecursionError, MemoryError, SyntaxError) as error:
            raise ChatTemplateError(f"the model's chat template cannot be compiled: {error}") from error
        self._globals = dict(self._template.globals)
        texts = [node.data for node in tree.find_all(nodes.TemplateData)]
        texts += [node.value for node in tree.find_all(nodes.Const) if isinstance(node.value, str)]
        self.literals = frozenset(texts)

    def render(
        self,
        messages: Sequence[Mapping[str, Any]],
        tools: Sequence[Mapping[str, Any]] | None = None,
        add_generation_prompt: bool = True,
        max_chars: int | None = None,
        **kwargs: Any,
    ) -> str:
        """Write a conversation as one prompt, the begin-of-sequence token included where the template has it.

        Args:
            messages: oldest first; `content` is text, `tool_calls[].function.arguments` an object.
            tools: as in the OpenAI API; None hides them.
            add_generation_prompt: end with the opening of the assistant's turn.
            max_chars: longest prompt that the caller has a use for.
            **kwargs: variables that this template knows, such as `enable_thinking`.

        Raises:
            PromptTooLongError: the prompt is longer than `max_chars`.
            ChatTemplateError: the template refused the conversation, failed, or went beyond its limits.
        """
        variables = {
            **self._tokens,
            **kwargs,
            "messages": messages,
            "tools": tools,
            "documents": None,
            "add_generation_prompt": add_generation_prompt,
        }
        with self._translated_errors(), spending(self.limits), self._context(variables) as context:
            parts = list(self._template.root_render_func(context))
            length = sum(map(len, parts))
            if length > self.limits.output_chars:
                raise TemplateLimitError("it makes too long a prompt")
            if max_chars is not None and length > max_chars:
                raise PromptTooLongError(length)
            return "".join(parts)

    def render_open(
        self,
        messages: Sequence[Mapping[str, Any]],
        tools: Sequence[Mapping[str, Any]] | None = None,
        *,
        field: str = "content",
        **kwargs: Any,
    ) -> str:
        """Write a conversation up to the end of its last message's text, for the model to go on with it.

        Args:
            messages: as in `render`; the last one has text in `field`.
            tools: as in `render`.
            field: `content`, or one of `REASONING_NAMES`.
            **kwargs: as in `render`.

        Raises:
            ChatTemplateError: as in `render`; or the template leaves the last message out.
        """
        last = dict(messages[-1])
        text = last[field]
        copies = REASONING_NAMES if field in REASONING_NAMES else (field,)
        last |= {name: text + _END_OF_CONTENT for name in copies if last.get(name) == text}
        rendered = self.render([*messages[:-1], last], tools, add_generation_prompt=False, **kwargs)
        end = rendered.rfind(_END_OF_CONTENT[0])
        if end < 0:
            raise ChatTemplateError(
                "the model's chat template leaves out the message that is to be continued"
            )
        if rendered.startswith(_END_OF_CONTENT, end):
            return rendered[:end]
        return rendered[:end].rstrip()

    @contextmanager
    def _context(self, variables: Mapping[str, Any]) -> Iterator[Context]:
        """What a render looks names up in.

        Macros hold it and it holds them: unless they are emptied, all that a request has lives on until the
        next garbage collection.
        """
        template, known = self._template, self._globals
        context = Context(
            template.environment, {**known, **variables}, template.name, template.blocks, globals=known
        )
        try:
            yield context
        finally:
            for value in context.vars.values():
                if type(value) is Macro:
                    vars(value).clear()
            context.vars.clear()

    @contextmanager
    def _translated_errors(self) -> Iterator[None]:
        """Errors of templates may hold what the messages hold: only the template's own words go on."""
        try:
            yield
        except ChatTemplateError:
            raise
        except TemplateLimitError as error:
            raise ChatTemplateError(
                f"the model's chat template cannot render the messages: {error}"
            ) from error
        except TemplateRefusalError as error:
            raise ChatTemplateError(
                f"the model's chat template refused the messages: {self._own_words(str(error))}"
            ) from error
        except Exception as error:  # templates do arithmetic and subscripts on whatever they are given
            raise ChatTemplateError(
                f"the model's chat template failed on the messages: {type(error).__name__}"
            ) from error

    def _own_words(self, message: str) -> str:
        """How far the message is the template's own."""
        begins = max((text for text in self.literals if message.startswith(text)), key=len, default="")
        return begins if begins == message else f"{begins}…"


@cache
def _environment() -> ChatTemplateEnvironment:
    return ChatTemplateEnvironment()
