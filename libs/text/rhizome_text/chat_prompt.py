"""Conversations to token ids: template and tokenizer together, and nothing typed becomes a control token."""

from __future__ import annotations

import threading
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import tokenizers

from rhizome_text.chat_template import ChatTemplate
from rhizome_text.control_tokens import ControlTokens, RenderedPrompt
from rhizome_text.literal_encoder import LiteralEncoder
from rhizome_text.word_encoder import WordEncoder


@dataclass(frozen=True, slots=True)
class Conversation:
    """What a template is given.

    Attributes:
        messages: oldest first, as templates know them.
        tools: as in the OpenAI API; None hides them.
        variables: further variables of the template.
        add_generation_prompt: end with the opening of the assistant's turn.
        continued_field: end with this text of the last message instead, open; None for closed turns.
    """

    messages: Sequence[Mapping[str, Any]]
    tools: Sequence[Mapping[str, Any]] | None = None
    variables: Mapping[str, Any] | None = None
    add_generation_prompt: bool = True
    continued_field: str | None = None


class ChatPrompts:
    """Renders and tokenises for one tokenizer and one of its templates.

    Safe to share between threads. A conversation without any control token's text takes the short way:
    render, tokenise. The other way gives the same ids for everything else, and takes somewhat longer; its
    first use builds a second tokenizer.

    Args:
        backend: the tokenizer.
        template: writes conversations.
        words: the same ids faster, for texts that it takes.
    """

    def __init__(
        self, backend: tokenizers.Tokenizer, template: ChatTemplate, words: WordEncoder | None = None
    ) -> None:
        self.template = template
        self._words = words
        self.controls = ControlTokens(backend, template.literals)
        self._backend = backend
        self._literal: LiteralEncoder | None = None
        self._building = threading.Lock()

    def has_typed_controls(self, conversation: Conversation) -> bool:
        """Whether the conversation holds, or may hold, the text of a control token."""
        occur_in = self.controls.occur_in
        return (
            occur_in(conversation.messages)
            or occur_in(conversation.tools)
            or occur_in(conversation.variables)
        )

    def render(self, conversation: Conversation, max_chars: int | None = None) -> RenderedPrompt | str:
        """Render; a plain text means that all control tokens in it are meant.

        Raises:
            PromptTooLongError: the prompt is longer than `max_chars`.
            ChatTemplateError: the template refused the conversation, failed, or went beyond its limits.
        """
        if not self.has_typed_controls(conversation):
            return self._rendered(
                conversation, conversation.messages, conversation.tools, conversation.variables, max_chars
            )
        marked = self.controls.mark([conversation.messages, conversation.tools, conversation.variables])
        messages, tools, variables = marked.value
        rendered = self._rendered(conversation, messages, tools, variables, max_chars)
        return self.controls.read(rendered, marked.begin, marked.end)

    def encode(self, prompt: RenderedPrompt | str) -> Sequence[int]:
        """Token ids of what `render` gave.

        Raises:
            LiteralTextError: a control token's text was typed, and this vocabulary cannot read it as text.
        """
        if isinstance(prompt, str):
            if self._words is not None and (known := self._words.encode(prompt)) is not None:
                return known
            ids: list[int] = self._backend.encode_batch_fast([prompt], add_special_tokens=False)[0].ids
            return ids
        if self._literal is None:
            with self._building:
                self._literal = self._literal or LiteralEncoder(self._backend, self.controls.texts)
        return self._literal.encode(prompt)

    def _rendered(
        self,
        conversation: Conversation,
        messages: Sequence[Mapping[str, Any]],
        tools: Sequence[Mapping[str, Any]] | None,
        variables: Mapping[str, Any] | None,
        max_chars: int | None,
    ) -> str:
        given = {**(variables or {}), "max_chars": max_chars}
        if conversation.continued_field is not None:
            return self.template.render_open(messages, tools, field=conversation.continued_field, **given)
        return self.template.render(messages, tools, conversation.add_generation_prompt, **given)
