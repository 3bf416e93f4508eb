"""From a checked request to what the engine is asked, and what of its answers is shown."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from dataclasses import dataclass

from rhizome_gateway.auth.caller import Caller
from rhizome_gateway.errors import ApiError
from rhizome_gateway.generation.plan import Output, plan_choices
from rhizome_gateway.generation.response import PlannedChoice
from rhizome_gateway.openai.completions.choice import ContinuingChoice
from rhizome_gateway.openai.completions.request import CompletionRequest
from rhizome_gateway.openai.completions.shown import ShownChoice
from rhizome_gateway.prompt.context import check_context
from rhizome_gateway.runtime import Runtime
from rhizome_gateway.served_model import ServedModel
from rhizome_gateway.structure.request_grammar import grammar_for
from rhizome_gateway.tokenization.inputs import ModelInput, input_name, read_inputs
from rhizome_gateway.tokenization.spelling import Spelling

MAX_CANDIDATES = 2048
"""Answers of one request, over all prompts."""

MAX_PROMPT_TOKENS = 2**21
"""Of one request, each prompt counted once for each of its answers."""

MAX_SCORES = 2**20
"""Log probabilities in one response: that many make some 50 MB of JSON. What evaluations send, such as 250
prompts of 2048 tokens with `logprobs: 1`, still fits."""

_MANY_TOKENS = 4096


@dataclass(frozen=True, slots=True)
class CompletionPlan:
    """What to ask, and how to show it; both by candidate, prompt by prompt."""

    choices: Sequence[PlannedChoice]
    shown: Sequence[ShownChoice]


async def plan_completion(
    runtime: Runtime, caller: Caller, served: ServedModel, request: CompletionRequest, response_id: str
) -> CompletionPlan:
    """Tokenise, check the limits, and plan `best_of` candidates for each prompt.

    Args:
        runtime: of this process.
        caller: who asks.
        served: the model.
        request: what is asked.
        response_id: names the engine's requests.

    Raises:
        ApiError: the request cannot be served.
    """
    _check_choices(runtime, request)
    prompts = await read_inputs(
        served, request.prompt, add_special_tokens=request.add_special_tokens is not False, field="prompt"
    )
    for place, prompt in enumerate(prompts):
        name = input_name("prompt", place, len(prompts))
        check_context(served, len(prompt.token_ids), request.max_tokens, name)
    _check_size(served, request, prompts)
    hidden_ids = served.tokenizer.special_ids if request.skip_special_tokens is not False else frozenset()
    echoes: list[str | None] = [None] * len(prompts)
    if request.echo and request.logprobs is not None:
        echoes = [""] * len(prompts)  # the text comes with the tokens
    elif request.echo:
        echoes = await _texts(served, prompts, hidden_ids)
    ranked = request.num_candidates > request.num_choices
    grammar = await grammar_for(
        served.grammars,
        response_format=request.response_format,
        structured_outputs=request.structured_outputs,
    )
    output = Output(
        grammar=grammar,
        top_logprobs=request.logprobs if request.logprobs is not None or not ranked else 0,
        prompt_logprobs=request.logprobs if request.echo else None,
    )
    planned = plan_choices(
        served,
        caller,
        request,
        [prompt.token_ids for prompt in prompts],
        response_id=response_id,
        num_choices=request.num_candidates,
        max_tokens=request.token_limit,
        output=output,
    )
    end_ids = _end_ids(served, request) if grammar is None else frozenset[int]()
    spelled = Spelling(served.tokenizer)
    choices: list[PlannedChoice] = []
    shown: list[ShownChoice] = []
    for place, one in enumerate(planned):
        prompt, echo = prompts[place // request.num_candidates], echoes[place // request.num_candidates]
        room = served.info.max_context_tokens - len(prompt.token_ids)
        one.request.stop.max_tokens = min(request.token_limit, room)
        if output.prompt_logprobs is not None:  # each answer shows its prompt as soon as it can
            one.request.prompt_logprobs = output.prompt_logprobs
        if end_ids:
            one.request.stop.ignore_eos = True
            one.request.stop.ClearField("token_ids")
        shown.append(
            ShownChoice(
                served.tokenizer,
                spelled,
                prompt,
                echo=echo,
                scored=request.logprobs is not None,
                hidden_ids=hidden_ids | end_ids,
            )
        )
        choice = ContinuingChoice(
            served.tokenizer,
            prompt.ending(hidden_ids),
            end_ids=end_ids,
            collector=None if request.stream else shown[-1],
            stop_strings=request.stop_strings,
            skip_special_tokens=request.skip_special_tokens is not False,
            include_stop=bool(request.include_stop_str_in_output),
        )
        choices.append(PlannedChoice(one.request, choice))
    return CompletionPlan(choices, shown)


def _end_ids(served: ServedModel, request: CompletionRequest) -> frozenset[int]:
    """Tokens that end the answer, where the gateway and not the engine is to see to that.

    The engine does not report the token that ends an answer. But who scores a prompt asks for one token more,
    and takes the last log probability for that token's. With one token to generate it makes no difference to
    the engine whether that is an end.
    """
    if request.logprobs is None or request.token_limit != 1 or request.min_tokens:
        return frozenset()
    eos_ids = () if request.ignore_eos else served.info.eos_token_ids
    return frozenset((*eos_ids, *(request.stop_token_ids or ())))


async def _texts(
    served: ServedModel, prompts: Sequence[ModelInput], hidden_ids: frozenset[int]
) -> list[str | None]:
    def texts() -> list[str | None]:
        return [prompt.text(served.tokenizer, hidden_ids) for prompt in prompts]

    if sum(len(prompt.token_ids) for prompt in prompts) <= _MANY_TOKENS:
        return texts()
    return await asyncio.to_thread(texts)


def _check_choices(runtime: Runtime, request: CompletionRequest) -> None:
    most = runtime.settings.max_choices
    if request.num_candidates > most:
        name = "n" if request.num_choices > most else "best_of"
        raise ApiError(400, f"{name} may be at most {most} here.", code="invalid_value", param=name)
    if len(request.prompt) * request.num_candidates > MAX_CANDIDATES:
        raise ApiError(
            400,
            f"A request may ask for {MAX_CANDIDATES} answers over all its prompts; send several requests.",
            code="invalid_value",
            param="prompt",
        )


def _check_size(served: ServedModel, request: CompletionRequest, prompts: Sequence[ModelInput]) -> None:
    """Refuse what would take too much memory."""
    prompt_tokens = sum(len(prompt.token_ids) for prompt in prompts)
    problem = ""
    if prompt_tokens * request.num_candidates > MAX_PROMPT_TOKENS:
        problem = f"A request may have {MAX_PROMPT_TOKENS} tokens in its prompts, counted for each answer"
    if request.logprobs is not None:
        context = served.info.max_context_tokens
        tokens = sum(min(request.token_limit, context - len(prompt.token_ids)) for prompt in prompts)
        tokens += prompt_tokens if request.echo else 0
        if tokens * request.num_candidates * (1 + request.logprobs) > MAX_SCORES:
            problem = f"A response may hold {MAX_SCORES} log probabilities"
    if problem:
        raise ApiError(400, f"{problem}; send fewer prompts at a time.", code="invalid_value", param="prompt")
