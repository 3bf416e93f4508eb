"""Between the contract's messages and the engine core's own types; everything a peer says is checked here.

Nobody before the core is trusted: a peer may have spoken to the socket directly.
"""

from __future__ import annotations

import re
import time
from collections.abc import Hashable
from typing import Any

import grpc

from rhizome.common.v1 import common_pb2
from rhizome.engine.v1 import generate_pb2
from rhizome.engine.v1.frames_pb2 import RequestEvent, Submit
from rhizome_engine.batch import TokenLogprobs
from rhizome_engine.core.durations import to_duration, to_seconds
from rhizome_engine.core.events import (
    Event,
    FailedEvent,
    FinishedEvent,
    PromptLogprobsEvent,
    StartedEvent,
    TokensEvent,
)
from rhizome_engine.sampling.params import SamplingParams
from rhizome_engine.scheduler.request import FinishReason, Request, Timings, Usage
from rhizome_grammar.spec import MAX_PARTS, Grammar
from rhizome_telemetry.propagation import from_proto
from rhizome_transport.errors import EngineError
from rhizome_transport.packed_ids import ids_array

_MAX_REQUEST_ID_CHARS = 256
_MAX_NAME_CHARS = 256
"""Of tenants and namespaces, which are remembered after their requests ended."""
_MAX_PROMPT_TOKENS = 2**21
"""More than any context window has; reading them takes the time of everybody else."""
_MAX_SPECIAL_TOKENS = 4096
"""Biases and stop tokens of one request: they cost every step of everybody some time each."""
_MAX_ALLOWED_TOKENS = 2**18
"""More than any vocabulary has."""
_IN_CONTRACT = re.compile(r"^bad_words")
_REASONS = {
    FinishReason.STOP: generate_pb2.FINISH_REASON_STOP,
    FinishReason.LENGTH: generate_pb2.FINISH_REASON_LENGTH,
    FinishReason.CANCELLED: generate_pb2.FINISH_REASON_CANCELLED,
}


def to_request(submit: Submit, peer: Hashable, model: str, defaults: SamplingParams) -> Request:
    """What a peer submitted as the scheduler wants it.

    The engine core checks the rest when the request is added: token ids, lengths, limits.

    Args:
        submit: the frame's content.
        peer: who asks.
        model: the name of the served model.
        defaults: the checkpoint's sampling settings, for absent fields.

    Raises:
        EngineError: INVALID_ARGUMENT or NOT_FOUND; the message says what is wrong and `param` where.
    """
    request, stop = submit.request, submit.request.stop
    if not request.request_id or len(request.request_id) > _MAX_REQUEST_ID_CHARS:
        raise _invalid(f"request_id must have 1 to {_MAX_REQUEST_ID_CHARS} characters", "request_id")
    check_model(request.model, model)
    kind = request.WhichOneof("input")
    if kind != "token_ids":
        raise _invalid(
            f"the input is {kind or 'missing'}, but Connect takes token_ids only: "
            "tokenise before, or call Generate, which takes text and messages",
            "input",
        )
    _refuse_text(request)
    check_name(request.cache_namespace, "cache_namespace")
    check_name(request.tenant, "tenant")
    check_prompt(len(request.token_ids.ids))
    _check_counts(request)
    return Request(
        request.request_id,
        ids_array(request.token_ids),
        to_sampling_params(request.sampling, defaults),
        peer=peer,
        max_tokens=stop.max_tokens if stop.HasField("max_tokens") else None,
        min_tokens=stop.min_tokens,
        stop_token_ids=tuple(stop.token_ids),
        ignore_eos=stop.ignore_eos,
        namespace=request.cache_namespace,
        tenant=request.tenant,
        priority=request.priority,
        deadline=time.monotonic() + to_seconds(submit.timeout) if submit.HasField("timeout") else None,
        trace=from_proto(submit.trace) if submit.HasField("trace") else None,
        grammar=to_grammar(request.grammar) if request.HasField("grammar") else None,
        prompt_logprobs=request.prompt_logprobs if request.HasField("prompt_logprobs") else None,
        resumed_tokens=request.resumed_tokens,
    )


def check_name(name: str, param: str) -> None:
    """Refuse names of tenants and namespaces that are too long to be remembered.

    Raises:
        EngineError: INVALID_ARGUMENT.
    """
    if len(name) > _MAX_NAME_CHARS:
        raise _invalid(f"{param} has {len(name)} characters; at most {_MAX_NAME_CHARS} are taken", param)


def check_prompt(num_tokens: int, param: str = "prompt") -> None:
    """Refuse prompts that no model could take before they are read.

    Raises:
        EngineError: INVALID_ARGUMENT.
    """
    if num_tokens > _MAX_PROMPT_TOKENS:
        text = f"there are {num_tokens} tokens in the {param}; at most {_MAX_PROMPT_TOKENS} are taken at once"
        code = grpc.StatusCode.INVALID_ARGUMENT
        raise EngineError(code, text, reason="CONTEXT_LENGTH_EXCEEDED", param=param)


def _check_counts(request: generate_pb2.GenerateRequest) -> None:
    """Refuse lists whose mere length would cost other requests their time, before they are read."""
    sampling = request.sampling
    words = sampling.bad_token_sequences
    for count, most, param in (
        (len(sampling.logit_bias), _MAX_SPECIAL_TOKENS, "sampling.logit_bias"),
        (len(words), _MAX_SPECIAL_TOKENS, "sampling.bad_token_sequences"),
        (len(sampling.allowed_token_ids.ids), _MAX_ALLOWED_TOKENS, "sampling.allowed_token_ids"),
        (len(request.stop.token_ids), _MAX_SPECIAL_TOKENS, "stop.token_ids"),
    ):
        if count > most:
            raise _invalid(f"{param} has {count} entries; at most {most} are taken", param)
    tokens = sum(len(word.ids) for word in words)
    if tokens > _MAX_SPECIAL_TOKENS:
        param = "sampling.bad_token_sequences"
        raise _invalid(f"{param} has {tokens} tokens; at most {_MAX_SPECIAL_TOKENS} are taken", param)


def _refuse_text(request: generate_pb2.GenerateRequest) -> None:
    for given, param, instead in (
        (request.stop.strings, "stop.strings", "apply them where you detokenise and cancel the request"),
        (request.sampling.bad_words, "sampling.bad_words", "tokenise them into bad_token_sequences"),
        (request.echo, "echo", "whoever tokenised the prompt has its text"),
    ):
        if given:
            raise _invalid(
                f"Connect does not know text and takes no {param}: {instead}, or call Generate", param
            )


def to_sampling_params(message: generate_pb2.SamplingParams, defaults: SamplingParams) -> SamplingParams:
    """Sampling settings with `defaults` for absent fields.

    Raises:
        EngineError: INVALID_ARGUMENT, a number is not finite or out of range.
    """
    given: dict[str, Any] = {field.name: value for field, value in message.ListFields()}
    if not given:
        return defaults
    if message.logit_bias:
        given["logit_bias"] = dict(message.logit_bias)
    if message.HasField("allowed_token_ids"):
        given["allowed_token_ids"] = tuple(message.allowed_token_ids.ids)
    if given.pop("bad_token_sequences", None):
        given["bad_words"] = tuple(tuple(word.ids) for word in message.bad_token_sequences)
    settings = {name: getattr(defaults, name) for name in SamplingParams.__dataclass_fields__}
    try:
        return SamplingParams(**{**settings, **given})
    except ValueError as error:
        problem = _IN_CONTRACT.sub("bad_token_sequences", str(error))
        raise _invalid(problem, f"sampling.{problem.split(' ', 1)[0]}") from error


def to_grammar(message: generate_pb2.Grammar, param: str = "grammar") -> Grammar:
    """What the output must conform to; whether it compiles shows later.

    Raises:
        EngineError: INVALID_ARGUMENT, it is empty, too large or no JSON.
    """
    kind = message.WhichOneof("kind")
    if kind is None:
        kinds = ", ".join(field.name for field in message.DESCRIPTOR.oneofs_by_name["kind"].fields)
        raise _invalid(f"the grammar is empty; set one of {kinds}", param)
    if len(message.parts) > MAX_PARTS or any(part.parts for part in message.parts.values()):
        raise _invalid(f"a grammar has at most {MAX_PARTS} parts, which have none", f"{param}.parts")
    parts = {name: to_grammar(part, f"{param}.parts") for name, part in message.parts.items()}
    try:
        return Grammar(
            kind,
            text=getattr(message, kind) if kind in ("json_schema", "regex", "lark") else "",
            choices=tuple(message.choice.texts),
            flexible_whitespace=message.flexible_whitespace,
            # A map has no order of its own, and equal grammars are compiled once.
            parts=tuple(sorted(parts.items())),
        )
    except ValueError as error:
        raise _invalid(str(error), f"{param}.{kind}") from error


def check_model(asked: str, served: str) -> None:
    """Refuse names that are not served; empty means the only model.

    Raises:
        EngineError: NOT_FOUND.
    """
    if asked not in ("", served):
        raise EngineError(
            grpc.StatusCode.NOT_FOUND,
            f"model {asked!r} is not served here; this engine serves {served!r}",
            reason="MODEL_NOT_FOUND",
            param="model",
        )


def to_request_event(event: Event) -> RequestEvent:
    """An event of the core as it travels in a frame."""
    message = RequestEvent(request_id=event.request.request_id)
    match event:
        case StartedEvent():
            message.response.started.prompt_tokens = event.prompt_tokens
            message.response.started.cached_tokens = event.cached_tokens
            message.response.started.seed = event.request.seed
        case PromptLogprobsEvent():
            message.response.prompt_logprobs.logprobs.extend(map(_logprob, event.logprobs))
        case TokensEvent():
            message.response.delta.token_ids.extend(event.token_ids)
            if event.logprobs is not None:
                message.response.delta.logprobs.extend(map(_logprob, event.logprobs))
        case FinishedEvent():
            finished = message.response.finished
            finished.reason = _REASONS[event.reason]
            if event.stop_token_id is not None:
                finished.stop_token_id = event.stop_token_id
            finished.usage.CopyFrom(_usage(event.usage))
            finished.timings.CopyFrom(_timings(event.timings))
            message.final = True
        case FailedEvent():
            message.status.CopyFrom(event.error.to_status())
            message.final = True
    return message


def refused(request_id: str, error: EngineError) -> RequestEvent:
    """The only event of a request that was not accepted."""
    return RequestEvent(request_id=request_id, status=error.to_status(), final=True)


def _invalid(message: str, param: str) -> EngineError:
    return EngineError(grpc.StatusCode.INVALID_ARGUMENT, message, param=param)


def _usage(usage: Usage) -> common_pb2.Usage:
    return common_pb2.Usage(
        prompt_tokens=usage.prompt_tokens,
        completion_tokens=usage.completion_tokens,
        cached_tokens=usage.cached_tokens,
        preemptions=usage.preemptions,
        forced_tokens=usage.forced_tokens,
    )


def _timings(timings: Timings) -> common_pb2.Timings:
    return common_pb2.Timings(
        queue_time=to_duration(timings.queue_s),
        prefill_time=to_duration(timings.prefill_s),
        decode_time=to_duration(timings.decode_s),
        time_to_first_token=to_duration(timings.time_to_first_token_s),
    )


def _logprob(logprobs: TokenLogprobs) -> generate_pb2.TokenLogprob:
    return generate_pb2.TokenLogprob(
        logprob=logprobs.logprob,
        top=[generate_pb2.RankedToken(token_id=token, logprob=value) for token, value in logprobs.top],
    )
