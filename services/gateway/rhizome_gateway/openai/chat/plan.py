"""From a checked chat request to what the engine is asked, for every API that holds conversations."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

from rhizome.engine.v1.generate_pb2 import Grammar
from rhizome_gateway.auth.caller import Caller
from rhizome_gateway.errors import ApiError
from rhizome_gateway.generation.lane import PlannedChoice
from rhizome_gateway.generation.plan import Output, plan_choices
from rhizome_gateway.openai.chat.request import ChatCompletionRequest
from rhizome_gateway.openai.scored_prompt import check_scores
from rhizome_gateway.parsing.formats import AnswerParser, OutputFormats, output_parser
from rhizome_gateway.prompt.from_openai import chat_prompt
from rhizome_gateway.runtime import Runtime
from rhizome_gateway.served_model import ServedModel
from rhizome_gateway.structure.request_grammar import grammar_for
from rhizome_gateway.structure.thinking import Thinking
from rhizome_gateway.structure.tool_grammar import ToolCalls
from rhizome_gateway.structure.tool_spec import ToolSpec
from rhizome_gateway.tokenization.bad_words import bad_sequences


async def plan_chat(
    runtime: Runtime,
    caller: Caller,
    served: ServedModel,
    request: ChatCompletionRequest,
    tools: Sequence[dict[str, Any]] | None,
    response_id: str,
) -> list[PlannedChoice]:
    """Render, tokenise, and compile what the answer must conform to.

    Args:
        runtime: of this process.
        caller: who asks.
        served: the model.
        request: what is asked.
        tools: as the client declared them, in OpenAI's form; None without tools. The checked ones in
            `request` lack what a schema may hold besides.
        response_id: names the engine's requests.

    Raises:
        ApiError: the request cannot be served.
    """
    if request.num_choices > runtime.settings.max_choices:
        raise ApiError(
            400, f"n may be at most {runtime.settings.max_choices} here.", code="invalid_value", param="n"
        )
    prompt = await chat_prompt(served, request, tools if request.offered_tools else None)
    check_scores(len(prompt.token_ids), request.prompt_logprobs)
    formats = served.text.formats
    thinking = None
    # Some templates open the thinking whatever they are told.
    if formats.reasoning is not None and (request.reasoning_effort != "none" or prompt.opens_reasoning):
        thinking = Thinking(formats.reasoning, prompt.opens_reasoning)
    parser = _parser(formats, request, thinking)
    return plan_choices(
        served,
        caller,
        request,
        [prompt.token_ids],
        response_id=response_id,
        num_choices=request.num_choices,
        max_tokens=request.token_limit,
        output=Output(
            grammar=await _grammar(served, request, thinking),
            bad_sequences=await bad_sequences(served.tokenizer, request.bad_words),
            parser=parser,
            visible_ids=_visible_ids(served, parser),
            top_logprobs=(request.top_logprobs or 0) if request.logprobs else None,
            prompt_logprobs=request.prompt_logprobs,
            keep_ids=bool(request.return_token_ids),
        ),
    )


def _parser(
    formats: OutputFormats, request: ChatCompletionRequest, thinking: Thinking | None
) -> Callable[[], AnswerParser] | None:
    """What makes the parser of one answer; None where its text needs none."""
    make = partial(
        output_parser,
        formats,
        [tool.function.name for tool in request.callable_tools],
        parallel=request.parallel_tool_calls is not False,
        starts_inside=thinking is not None and thinking.starts_inside,
    )
    return make if make() is not None else None  # type: ignore[return-value]


def _visible_ids(served: ServedModel, parser: Callable[[], AnswerParser] | None) -> frozenset[int]:
    """Special tokens that the parser has to see; without a parser nobody should."""
    special = served.text.special_markers
    if parser is None or not special:
        return frozenset()
    return frozenset(special[marker] for marker in parser().visible_markers if marker in special)


async def _grammar(
    served: ServedModel, request: ChatCompletionRequest, thinking: Thinking | None
) -> Grammar | None:
    calls = None
    allowed = {tool.function.name for tool in request.callable_tools}
    if allowed:
        form = served.text.formats.tools
        if form is not None:
            calls = ToolCalls(
                [
                    ToolSpec(
                        tool.function.name,
                        tool.function.parameters,
                        tool.function.strict,
                        f"tools[{position}].function.parameters",
                    )
                    for position, tool in enumerate(request.tools or ())
                    if tool.function.name in allowed
                ],
                form,
                required=request.must_call,
                parallel=request.parallel_tool_calls is not False,
            )
        elif request.must_call:
            raise ApiError(
                400,
                "How this model writes tool calls is not known, so no call can be forced; leave tool_choice "
                "at 'auto', or start the gateway with --tool-parser.",
                code="unsupported_parameter",
                param="tool_choice",
            )
    return await grammar_for(
        served.grammars,
        response_format=request.response_format,
        structured_outputs=request.structured_outputs,
        tool_calls=calls,
        thinking=thinking,
    )
