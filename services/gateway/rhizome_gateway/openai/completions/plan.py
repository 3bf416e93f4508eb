"""From a checked request to what the engine is asked, and what of its answers is shown."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from dataclasses import dataclass

from rhizome_gateway.auth.caller import Caller
from rhizome_gateway.generation.lane import PlannedChoice
from rhizome_gateway.generation.plan import Output, plan_choices
from rhizome_gateway.openai.completions.choice import ContinuingChoice
from rhizome_gateway.openai.completions.limits import check_choices, check_size
from rhizome_gateway.openai.completions.request import CompletionRequest
from rhizome_gateway.openai.completions.shown import ShownChoice
from rhizome_gateway.prompt.context import check_context, kept_tokens
from rhizome_gateway.runtime import Runtime
from rhizome_gateway.served_model import ServedModel
from rhizome_gateway.structure.request_grammar import grammar_for
from rhizome_gateway.tokenization.bad_words import bad_sequences
from rhizome_gateway.tokenization.inputs import ModelInput, input_name, read_inputs
from rhizome_gateway.tokenization.spelling import NumberedTokens, Spelling
from rhizome_transport.split_request import SplitRequest

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
    check_choices(runtime, request)
    kept = kept_tokens(served, request.truncate_prompt_tokens, request.token_limit)
    prompts = await read_inputs(
        served,
        request.prompt,
        add_special_tokens=request.add_special_tokens is not False,
        field="prompt",
        keep=None if kept is None else slice(-kept, None),
    )
    for place, prompt in enumerate(prompts):
        name = input_name("prompt", place, len(prompts))
        check_context(served, len(prompt.token_ids), request.max_tokens, name)
    check_size(served, request, prompts)
    hidden_ids = served.tokenizer.special_ids if request.skip_special_tokens is not False else frozenset()
    echoes: list[str | None] = [None] * len(prompts)
    if request.scores_echo:
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
        bad_sequences=await bad_sequences(served.tokenizer, request.bad_words),
        top_logprobs=request.logprobs if request.logprobs is not None or not ranked else 0,
        prompt_logprobs=request.prompt_logprobs,
        keep_ids=bool(request.return_token_ids),
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
    spelled = Spelling(NumberedTokens() if request.return_tokens_as_token_ids else served.tokenizer)
    shared = _Shared(hidden_ids, _end_ids(served, request) if grammar is None else frozenset(), spelled)
    choices: list[PlannedChoice] = []
    shown: list[ShownChoice] = []
    for place, one in enumerate(planned):
        owner = place // request.num_candidates
        shown.append(_shown(served, request, prompts[owner], echoes[owner], shared))
        if request.scores_echo:  # each answer shows its prompt as soon as it can
            one.request.head.prompt_logprobs = request.logprobs or 0
        choices.append(_continuing(served, request, prompts[owner], one.request, shown[-1], shared))
    return CompletionPlan(choices, shown)


@dataclass(frozen=True, slots=True)
class _Shared:
    """What all candidates share.

    Attributes:
        hidden_ids: special tokens without text.
        end_ids: see `_end_ids`.
        spelled: writes tokens.
    """

    hidden_ids: frozenset[int]
    end_ids: frozenset[int]
    spelled: Spelling


def _shown(
    served: ServedModel, request: CompletionRequest, prompt: ModelInput, echo: str | None, shared: _Shared
) -> ShownChoice:
    return ShownChoice(
        served.tokenizer,
        shared.spelled,
        prompt,
        echo=echo,
        scored=request.logprobs is not None,
        hidden_ids=shared.hidden_ids,
        end_ids=shared.end_ids,
    )


def _continuing(
    served: ServedModel,
    request: CompletionRequest,
    prompt: ModelInput,
    asked: SplitRequest,
    shown: ShownChoice,
    shared: _Shared,
) -> PlannedChoice:
    """The candidate that `asked` is about, which goes on where its prompt ends."""
    room = served.info.max_context_tokens - len(prompt.token_ids)
    stop = asked.head.stop
    stop.max_tokens = min(request.token_limit, room)
    if shared.end_ids:
        stop.ignore_eos = True
        stop.ClearField("token_ids")
    choice = ContinuingChoice(
        served.tokenizer,
        prompt.ending(shared.hidden_ids),
        end_ids=shared.end_ids,
        collector=None if request.stream else shown,
        stop_strings=request.stop_strings,
        skip_special_tokens=request.skip_special_tokens is not False,
        include_stop=bool(request.include_stop_str_in_output),
        keep_ids=bool(request.return_token_ids),
    )
    return PlannedChoice(asked, choice)


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
