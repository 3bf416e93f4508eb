"""Chat requests of OpenAI's API to prompts; other APIs may write theirs as such a request too."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from rhizome_gateway.openai.chat.request import ChatCompletionRequest
from rhizome_gateway.openai.messages import Message
from rhizome_gateway.prompt.context import check_context, kept_tokens
from rhizome_gateway.prompt.conversation import Prompt, chat_token_ids
from rhizome_gateway.prompt.message import ChatMessage, ToolCall
from rhizome_gateway.prompt.template_variables import template_variables
from rhizome_gateway.served_model import ServedModel


async def chat_prompt(
    served: ServedModel, request: ChatCompletionRequest, tools: Sequence[Mapping[str, Any]] | None
) -> Prompt:
    """The prompt of a chat request.

    Args:
        served: whose template and tokenizer.
        request: the conversation.
        tools: as the client declared them, None to hide them.

    Raises:
        ApiError: 400; the template refuses the conversation, or it does not fit into the context.
    """
    kept = kept_tokens(served, request.truncate_prompt_tokens, request.token_limit)
    prompt = await chat_token_ids(
        served,
        [chat_message(message) for message in request.messages],
        tools,
        add_generation_prompt=request.add_generation_prompt,
        continue_final_message=bool(request.continue_final_message),
        template_variables=template_variables(request.reasoning_effort, request.chat_template_kwargs),
        keep_last=kept,
    )
    check_context(served, len(prompt.token_ids), request.token_limit)
    return prompt


def chat_message(message: Message) -> ChatMessage:
    """A message, without what only OpenAI's API has; a refusal is something the assistant said."""
    reasoning = message.reasoning if message.reasoning_content is None else message.reasoning_content
    return ChatMessage(
        message.role,
        message.content or message.refusal,
        reasoning if message.role == "assistant" else None,
        message.name,
        [ToolCall(call.function.name, call.function.arguments, call.id) for call in message.tool_calls or ()],
        message.tool_call_id,
    )
