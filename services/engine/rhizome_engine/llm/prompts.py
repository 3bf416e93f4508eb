"""What can be asked: text, token ids, conversations; one of them or several."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from rhizome_text import chat_prompt
from rhizome_text.tokenizer import Tokenizer

Prompt = str | Sequence[int]
"""Text, tokenised with the model's special tokens, or token ids."""
Conversation = Sequence[Mapping[str, Any]]
"""`[{"role": ..., "content": ...}, ...]`."""


def several(prompts: Prompt | Sequence[Prompt]) -> Sequence[Prompt]:
    """A sequence of prompts, where one prompt alone may have been given."""
    if isinstance(prompts, str) or (prompts and isinstance(prompts[0], int)):
        return [prompts]  # type: ignore[list-item]
    return prompts  # type: ignore[return-value]


def several_conversations(messages: Conversation | Sequence[Conversation]) -> Sequence[Conversation]:
    """A sequence of conversations, where one alone may have been given."""
    return [messages] if messages and isinstance(messages[0], Mapping) else messages  # type: ignore[list-item, return-value]


def token_ids_of(prompt: Prompt, tokenizer: Tokenizer) -> list[int]:
    """A prompt as the model sees it."""
    return tokenizer.encode(prompt, add_special_tokens=True) if isinstance(prompt, str) else list(prompt)


def render_conversation(
    messages: Conversation, tools: Sequence[Mapping[str, Any]] | None, tokenizer: Tokenizer
) -> list[int]:
    """A conversation as the model sees it; special tokens that are written in it are text.

    Raises:
        ValueError: the checkpoint has no chat template.
        ChatTemplateError: the template refused the conversation.
    """
    prompts = tokenizer.chat_prompts(tools=bool(tools))
    if prompts is None:
        raise ValueError("the checkpoint has no chat template; use generate with a prompt of your own")
    return list(prompts.encode(prompts.render(chat_prompt.Conversation(messages, tools))))
