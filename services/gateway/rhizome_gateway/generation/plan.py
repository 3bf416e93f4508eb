"""From a checked request to what the engine is asked; what the client left out stays out."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from rhizome.engine.v1.generate_pb2 import (
    GenerateRequest,
    Grammar,
    SamplingParams,
    StopConditions,
    TokenIds,
)
from rhizome_gateway.auth.caller import Caller
from rhizome_gateway.errors import ApiError
from rhizome_gateway.generation.choice import Choice
from rhizome_gateway.generation.lane import PlannedChoice
from rhizome_gateway.parsing.base import OutputParser
from rhizome_gateway.schema.fields import INT64_MAX
from rhizome_gateway.schema.sampling import SamplingFields
from rhizome_gateway.served_model import ServedModel
from rhizome_text.packed_ids import PackedIds, pack
from rhizome_transport.packed_ids import ids_message
from rhizome_transport.split_request import SplitRequest

_SAME_NAME = (
    "temperature",
    "top_p",
    "min_p",
    "repetition_penalty",
    "frequency_penalty",
    "presence_penalty",
)


MAX_NAMED_TOKENS = 2**20
"""Tokens that are allowed or banned, over all answers: each of the engine's requests names them again."""


@dataclass(frozen=True, slots=True)
class Output:
    """What the answers may be, and how they are read.

    Attributes:
        grammar: what they must conform to.
        bad_sequences: tokens that must not come out one after another.
        parser: makes the parser of one answer.
        visible_ids: special tokens that the parser has to see.
        top_logprobs: report the log probabilities of this many rivals; None reports none at all.
        prompt_logprobs: the same for the prompt.
        keep_ids: remember the tokens of the answers.
    """

    grammar: Grammar | None = None
    bad_sequences: Sequence[Sequence[int]] = ()
    parser: Callable[[], OutputParser] | None = None
    visible_ids: frozenset[int] = frozenset()
    top_logprobs: int | None = None
    prompt_logprobs: int | None = None
    keep_ids: bool = False


def plan_choices(
    served: ServedModel,
    caller: Caller,
    fields: SamplingFields,
    prompts: Sequence[Sequence[int]],
    *,
    response_id: str,
    num_choices: int,
    max_tokens: int | None,
    output: Output,
) -> list[PlannedChoice]:
    """`num_choices` for each prompt, prompt by prompt; with a seed, choice `i` gets `seed + i`.

    Raises:
        ApiError: 400; a token id outside of the model's vocabulary, or too many of them.
    """
    sampling = _sampling(fields, served.info.vocab_size, output.top_logprobs)
    _check_named(fields, output, len(prompts) * num_choices)
    sampling.bad_token_sequences.extend(TokenIds(ids=ids) for ids in output.bad_sequences)
    stop = StopConditions(
        max_tokens=max_tokens,
        min_tokens=fields.min_tokens,
        token_ids=fields.stop_token_ids or (),
        ignore_eos=fields.ignore_eos,
    )
    planned: list[PlannedChoice] = []
    alone = len(prompts) * num_choices == 1
    for prompt in prompts:
        token_ids = _message(prompt)
        for index in range(num_choices):
            head = GenerateRequest(
                request_id=response_id if alone else f"{response_id}-{len(planned)}",
                model=served.info.model,
                sampling=sampling,
                stop=stop,
                cache_namespace=caller.salted_namespace(fields.cache_salt),
                priority=caller.priority,
                tenant=caller.tenant_name,
                affinity_key=fields.affinity_key,
                grammar=output.grammar,
                prompt_logprobs=output.prompt_logprobs if index == 0 else None,
            )
            if fields.seed is not None:
                head.sampling.seed = _wrapped(fields.seed + index)
            choice = Choice(
                served.tokenizer,
                stop_strings=fields.stop_strings,
                include_stop=bool(fields.include_stop_str_in_output),
                min_tokens=fields.min_tokens or 0,
                skip_special_tokens=fields.skip_special_tokens is not False,
                visible_ids=output.visible_ids,
                parser=output.parser() if output.parser is not None else None,
                keep_ids=output.keep_ids,
            )
            planned.append(PlannedChoice(SplitRequest(head, token_ids), choice))
    return planned


def _message(token_ids: Sequence[int]) -> bytes:
    """A serialised TokenIds."""
    return ids_message(token_ids.packed if isinstance(token_ids, PackedIds) else pack(token_ids))


def _check_named(fields: SamplingFields, output: Output, answers: int) -> None:
    allowed, banned = len(fields.allowed_token_ids or ()), sum(1 + len(ids) for ids in output.bad_sequences)
    if (allowed + banned) * answers > MAX_NAMED_TOKENS:
        param = "allowed_token_ids" if allowed >= banned else "bad_words"
        raise ApiError(
            400,
            f"{param} may name {MAX_NAMED_TOKENS} tokens, counted for each answer; ask for fewer answers.",
            code="invalid_value",
            param=param,
        )


def _sampling(fields: SamplingFields, vocab_size: int, top_logprobs: int | None) -> SamplingParams:
    sampling = SamplingParams(
        **{name: value for name in _SAME_NAME if (value := getattr(fields, name)) is not None}
    )
    if fields.top_k is not None:
        sampling.top_k = max(0, fields.top_k)
    if top_logprobs is not None:
        sampling.top_logprobs = top_logprobs
    for key, bias in (fields.logit_bias or {}).items():
        if not (key.isascii() and key.isdigit() and len(key) < 12 and int(key) < vocab_size):
            raise ApiError(
                400,
                f"Keys of logit_bias must be token ids below {vocab_size}, as strings of digits.",
                code="invalid_value",
                param="logit_bias",
            )
        sampling.logit_bias[int(key)] = bias
    if fields.allowed_token_ids:
        if max(fields.allowed_token_ids) >= vocab_size:
            raise ApiError(
                400,
                f"allowed_token_ids must be below {vocab_size}.",
                code="invalid_value",
                param="allowed_token_ids",
            )
        sampling.allowed_token_ids.ids.extend(fields.allowed_token_ids)
    return sampling


def _wrapped(seed: int) -> int:
    """Into the range of int64."""
    return (seed + INT64_MAX + 1) % 2**64 - INT64_MAX - 1
