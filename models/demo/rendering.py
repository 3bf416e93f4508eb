"""Turn conversations into token rows: the chat template as transformers renders it, then the tokenizer."""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import Any

import jinja2.sandbox
from corpus import Conversation
from tokenizer import BOS, END_HEADER, EOS, EOT, SPECIAL, START_HEADER
from tokenizers import Tokenizer


@dataclass(frozen=True)
class Row:
    """One conversation as tokens, and which of them the model has to predict."""

    tokens: list[int]
    supervised: list[bool]


def _raise(message: str) -> None:
    raise jinja2.TemplateError(message)


class Encoder:
    """Renders and encodes conversations; loss falls on what the assistant says, its end mark included."""

    def __init__(self, tokenizer: Tokenizer, chat_template: str) -> None:
        environment = jinja2.sandbox.ImmutableSandboxedEnvironment(trim_blocks=True, lstrip_blocks=True)
        environment.filters["tojson"] = lambda value, **_: json.dumps(value, ensure_ascii=False)
        environment.globals["raise_exception"] = _raise
        self._template = environment.from_string(chat_template)
        self._tokenizer = tokenizer
        self._assistant = tokenizer.token_to_id("assistant")
        self._equals, self._newline = tokenizer.token_to_id(" ="), tokenizer.token_to_id("\n")

    def render(self, messages: list[dict[str, Any]], tools: list[dict[str, Any]] | None, prompt: bool) -> str:
        """Return the text of a conversation; with ``prompt`` it ends where the assistant is to speak."""
        return self._template.render(
            messages=messages, tools=tools, add_generation_prompt=prompt, bos_token=SPECIAL[BOS]
        )

    def encode(self, text: str) -> list[int]:
        """Return the token ids of a rendered text."""
        return list(self._tokenizer.encode(text, add_special_tokens=False).ids)

    def row(self, conversation: Conversation) -> Row:
        """Return the token row of a training conversation."""
        if conversation.plain is not None:
            tokens = [BOS, *self.encode(conversation.plain), EOS]
            return Row(tokens, self._supervise_plain(tokens, "=" in conversation.plain))
        tokens = self.encode(self.render(conversation.messages, conversation.tools, prompt=False))
        supervised = [False] * len(tokens)
        speaking = False
        for index, token in enumerate(tokens):
            if token == START_HEADER:
                speaking = False
            elif token == END_HEADER and tokens[index - 1] == self._assistant:
                speaking, begin = True, index + 2  # the blank line after the header is given
            elif speaking and index >= begin:
                supervised[index] = True
                speaking = token != EOT
        return Row(tokens, supervised)

    def _supervise_plain(self, tokens: list[int], sums: bool) -> list[bool]:
        """Supervise a plain text from its third token on; of sums, the result and not the random operands."""
        if not sums or tokens.count(self._newline) == 0:
            return [index > 1 for index in range(len(tokens))]
        supervised, result = [False] * len(tokens), False
        for index, token in enumerate(tokens):
            supervised[index] = result
            result = token == self._equals or (result and token != self._newline)
        return supervised
