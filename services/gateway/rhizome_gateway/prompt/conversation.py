"""Conversations to token ids: the model's chat template, then its tokenizer."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache, partial
from typing import Any

from rhizome_gateway.errors import ApiError
from rhizome_gateway.parsing.reasoning import ReasoningMarkers
from rhizome_gateway.prompt.context import max_prompt_chars, too_many_chars
from rhizome_gateway.prompt.message import ChatMessage
from rhizome_gateway.prompt.template_messages import TemplateMessages, template_tools
from rhizome_gateway.served_model import ServedModel
from rhizome_gateway.tokenization.long_texts import VERY_LONG
from rhizome_text.chat_prompt import ChatPrompts, Conversation
from rhizome_text.chat_template import ChatTemplate, ChatTemplateError, PromptTooLongError
from rhizome_text.control_tokens import RenderedPrompt
from rhizome_text.literal_encoder import LiteralTextError

_INLINE_CHARS = 4096
"""Shorter conversations take less time than a hop to another thread."""


@dataclass(frozen=True, slots=True)
class Prompt:
    """A conversation as the model sees it.

    Attributes:
        token_ids: of the model's vocabulary.
        text: as it was rendered.
        opens_reasoning: it ends inside a span of thinking, so the answer begins there.
    """

    token_ids: Sequence[int]
    text: str
    opens_reasoning: bool


async def chat_token_ids(
    served: ServedModel,
    conversation: Sequence[ChatMessage],
    tools: Sequence[Mapping[str, Any]] | None = None,
    *,
    add_generation_prompt: bool | None = None,
    continue_final_message: bool = False,
    template_variables: Mapping[str, Any] | None = None,
    keep_last: int | None = None,
) -> Prompt:
    """Render and tokenise, off the event loop where it takes long.

    Args:
        served: whose template and tokenizer.
        conversation: oldest first.
        tools: as the client declared them, None to hide them.
        add_generation_prompt: end with the opening of the assistant's turn; None for yes, unless the last
            message is continued.
        continue_final_message: end where the last message ends, for the model to go on with it.
        template_variables: as `template_variables` made them.
        keep_last: leave out all but so many tokens at the end.

    Raises:
        ApiError: 400; the template refuses the conversation, or it has more characters than any prompt that
            fits into the context. `check_context` is for the caller, who knows what is to be generated.
    """
    try:
        prompts = served.tokenizer.chat_prompts(tools=bool(tools))
        if prompts is None:
            raise ApiError(
                400,
                "This model has no chat template, so it cannot hold conversations.",
                code="unsupported_parameter",
                param="messages",
            )
        markers = served.text.formats.reasoning
        writer = _writer(prompts.template, markers)
        field = None
        if continue_final_message:
            if add_generation_prompt:
                raise ApiError(
                    400,
                    "continue_final_message ends the prompt inside the last message, add_generation_prompt "
                    "begins another; ask for one of them.",
                    code="invalid_value",
                    param="continue_final_message",
                )
            conversation, field = _continued(conversation, writer)
        chars = sum(message.chars for message in conversation)
        messages = (
            writer.write(conversation)
            if chars <= _INLINE_CHARS
            else await asyncio.to_thread(writer.write, conversation)
        )
        given = Conversation(
            messages,
            None if tools is None else template_tools(tools),
            template_variables,
            add_generation_prompt is not False and field is None,
            field,
        )
        limit = max_prompt_chars(served)
        if tools or chars > _INLINE_CHARS:
            rendered, token_ids = await asyncio.to_thread(_token_ids, prompts, given, limit)
            if token_ids is None:  # tools are long sometimes, too
                token_ids = await served.long_texts.work(
                    len(_text(rendered)), partial(prompts.encode, rendered)
                )
        else:
            rendered = prompts.render(given, limit)
            if isinstance(rendered, str):
                token_ids = prompts.encode(rendered)
            else:  # the first of its kind loads a second tokenizer
                token_ids = await asyncio.to_thread(prompts.encode, rendered)
    except PromptTooLongError as error:
        raise too_many_chars(served, error.chars) from error
    except ChatTemplateError as error:
        raise ApiError(400, f"{error}.", code="invalid_value", param="messages") from error
    except LiteralTextError as error:
        raise ApiError(
            400,
            "The conversation holds the text of a control token, which this model's tokenizer cannot read as "
            "text; leave it out.",
            code="invalid_value",
            param="messages",
        ) from error
    text = _text(rendered)
    opens = markers is not None and _opens_reasoning(markers, given, rendered, prompts)
    if keep_last is not None:
        token_ids = token_ids[-keep_last:]
    return Prompt(token_ids, text, opens)


@lru_cache(maxsize=8)
def _writer(template: ChatTemplate, markers: ReasoningMarkers | None) -> TemplateMessages:
    return TemplateMessages(template, markers)


def _token_ids(
    prompts: ChatPrompts, given: Conversation, limit: int
) -> tuple[RenderedPrompt | str, Sequence[int] | None]:
    """No ids yet where the text is very long, and has to wait for its turn."""
    rendered = prompts.render(given, limit)
    return rendered, prompts.encode(rendered) if len(_text(rendered)) < VERY_LONG else None


def _text(rendered: RenderedPrompt | str) -> str:
    return rendered if isinstance(rendered, str) else rendered.text


def _continued(
    conversation: Sequence[ChatMessage], writer: TemplateMessages
) -> tuple[Sequence[ChatMessage], str]:
    """The conversation, and under which key the text of its last message is that goes on."""
    last = writer.with_reasoning_apart(conversation[-1])
    if last.role != "assistant" or last.tool_calls:
        raise ApiError(
            400,
            "continue_final_message needs a last message that is the assistant's text.",
            code="invalid_value",
            param="continue_final_message",
        )
    if not last.content and last.reasoning and writer.reasoning_names:
        return [*conversation[:-1], last], writer.reasoning_names[0]
    return [*conversation[:-1], last], "content"


def _opens_reasoning(
    markers: ReasoningMarkers, given: Conversation, rendered: RenderedPrompt | str, prompts: ChatPrompts
) -> bool:
    if given.continued_field is not None:
        if given.continued_field != "content":
            return True
        said = given.messages[-1]["content"]
        if said:
            return bool(said.rfind(markers.opening) > said.rfind(markers.closing))
    elif not given.add_generation_prompt:
        return False
    if isinstance(rendered, str):
        return markers.opened_by(rendered)
    if not markers.opened_by(rendered.text):
        return False
    # Somebody may have typed the marker; the template's own is a control token, where it is a token at all.
    is_token = markers.opening.strip() in prompts.controls.texts
    return not is_token or (
        bool(rendered.controls) and rendered.controls[-1][1] == len(rendered.text.rstrip())
    )
