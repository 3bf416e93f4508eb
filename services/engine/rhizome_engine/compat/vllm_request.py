"""A `GenerateRequest` of vLLM's contract as requests of ours, one per choice.

Most of its numbers cannot be absent: a field that nobody set is 0. What 0 means was decided field by field:

| field | 0 or absent means |
|---|---|
| temperature (can be absent) | absent 1, 0 greedy |
| top_p, repetition_penalty | 1, which changes nothing |
| top_k, min_p, the other penalties, min_tokens | 0, which changes nothing |
| n | 1 |
| max_tokens (can be absent) | absent fills the context window, 0 is refused |

All sampling settings are given to the core, so that the checkpoint's own defaults play no part: a router
knows them from `GetModelInfo` and sends what shall hold.
"""

from __future__ import annotations

from collections.abc import Sequence

import grpc
from smg_grpc_proto import vllm_engine_pb2 as vllm

from rhizome.engine.v1.generate_pb2 import GenerateRequest, Grammar, SamplingParams, StopConditions
from rhizome_transport.errors import EngineError

MOST_CHOICES = 128
_MOST_BIAS = 100.0
_WHOLE_CONTEXT = -1


def to_requests(request: vllm.GenerateRequest, prompt: Sequence[int]) -> list[GenerateRequest]:
    """What the core is asked; the requests of several choices differ in their seeds.

    Args:
        request: as it came.
        prompt: its token ids, cut already where it wants them cut.

    Raises:
        EngineError: INVALID_ARGUMENT or UNIMPLEMENTED, something in it cannot be served here.
    """
    _refuse_what_is_missing(request)
    params = request.sampling_params
    choices = params.n or 1
    if choices > MOST_CHOICES:
        raise _invalid(f"n is {choices}; at most {MOST_CHOICES} choices are made", "n")
    one = GenerateRequest(
        request_id=request.request_id,
        sampling=_sampling(params),
        stop=_stop(params),
        grammar=_grammar(params),
    )
    one.token_ids.ids.extend(prompt)
    if params.HasField("prompt_logprobs"):
        one.prompt_logprobs = _count(params.prompt_logprobs, "prompt_logprobs")
    requests = []
    for index in range(choices):
        choice = GenerateRequest()
        choice.CopyFrom(one)
        if params.HasField("seed"):
            choice.sampling.seed = params.seed + index
        requests.append(choice)
    return requests


def cut_prompt(prompt: list[int], params: vllm.SamplingParams, context_tokens: int) -> list[int]:
    """The end of a prompt, where `truncate_prompt_tokens` wants no more of it.

    Args:
        prompt: all of its token ids.
        params: those of the request.
        context_tokens: most tokens of prompt and output together.

    Raises:
        EngineError: INVALID_ARGUMENT, the number is neither positive nor -1, or leaves nothing.
    """
    if not params.HasField("truncate_prompt_tokens"):
        return prompt
    most = params.truncate_prompt_tokens
    if most == _WHOLE_CONTEXT:
        most = context_tokens - (params.max_tokens if params.HasField("max_tokens") else 1)
        if most <= 0:
            text = f"max_tokens is {params.max_tokens}, all of the {context_tokens} tokens that there are"
            raise _invalid(text, "max_tokens")
    elif most <= 0:
        text = f"truncate_prompt_tokens is {most}; give a positive number, or -1 for what fits"
        raise _invalid(text, "truncate_prompt_tokens")
    return prompt[-most:]


def _refuse_what_is_missing(request: vllm.GenerateRequest) -> None:
    """Refuse what this engine has nothing for, rather than answer as if it had not been asked."""
    for name in ("mm_inputs", "media_refs"):
        if request.HasField(name):
            raise _invalid(f"this engine takes text only; leave {name} out", name, sampling=False)
    if request.HasField("kv_transfer_params") or request.kv_transfer_params_json:
        text = "prefill and decode cannot be on two engines here; leave the KV transfer parameters out"
        raise EngineError(grpc.StatusCode.UNIMPLEMENTED, text, param="kv_transfer_params")
    if request.data_parallel_rank:
        text = f"there is one data-parallel rank, 0, not {request.data_parallel_rank}"
        raise _invalid(text, "data_parallel_rank", sampling=False)


def _sampling(params: vllm.SamplingParams) -> SamplingParams:
    sampling = SamplingParams(
        temperature=params.temperature if params.HasField("temperature") else 1.0,
        top_p=params.top_p or 1.0,
        top_k=params.top_k,
        min_p=params.min_p,
        repetition_penalty=params.repetition_penalty or 1.0,
        frequency_penalty=params.frequency_penalty,
        presence_penalty=params.presence_penalty,
    )
    if params.HasField("logprobs"):
        sampling.top_logprobs = _count(params.logprobs, "logprobs")
    for token_id, bias in params.logit_bias.items():
        if token_id < 0:
            raise _invalid(f"logit_bias names token {token_id}; token ids are not negative", "logit_bias")
        sampling.logit_bias[token_id] = min(max(bias, -_MOST_BIAS), _MOST_BIAS)
    return sampling


def _stop(params: vllm.SamplingParams) -> StopConditions:
    stop = StopConditions(
        min_tokens=params.min_tokens,
        strings=params.stop,
        token_ids=params.stop_token_ids,
        ignore_eos=params.ignore_eos,
    )
    if params.HasField("max_tokens"):
        if not params.max_tokens:
            raise _invalid("max_tokens is 0; at least one token is generated", "max_tokens")
        stop.max_tokens = params.max_tokens
    return stop


def _grammar(params: vllm.SamplingParams) -> Grammar | None:
    """What the output must conform to; whether it can be compiled shows later."""
    kind = params.WhichOneof("constraint")
    grammar = Grammar()
    if kind == "json_schema":
        grammar.json_schema = params.json_schema
    elif kind == "regex":
        grammar.regex = params.regex
    elif kind == "grammar":
        grammar.lark = params.grammar
    elif kind == "choice":
        grammar.choice.texts.extend(params.choice.choices)
    elif kind == "structural_tag":
        text = (
            "structural tags are not known here; send a JSON schema, a regular expression or a Lark grammar"
        )
        raise _invalid(text, "structural_tag")
    elif kind == "json_object" and params.json_object:
        grammar.json_object.SetInParent()
    else:
        return None
    return grammar


def _count(wanted: int, name: str) -> int:
    """How many rivals of each token; the core has its own limit."""
    if wanted < 0:
        text = f"{name} is {wanted}; the log probabilities of a whole vocabulary are not told, give a number"
        raise _invalid(text, name)
    return wanted


def _invalid(text: str, name: str, *, sampling: bool = True) -> EngineError:
    return EngineError(
        grpc.StatusCode.INVALID_ARGUMENT, text, param=f"sampling_params.{name}" if sampling else name
    )
