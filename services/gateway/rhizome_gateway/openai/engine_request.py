"""A checked request as the engine wants it; what the client left out stays out."""

from __future__ import annotations

from collections.abc import Sequence

from rhizome.engine.v1.generate_pb2 import GenerateRequest, SamplingParams, StopConditions, TokenIds
from rhizome_gateway.errors import ApiError
from rhizome_gateway.openai.schema import INT64_MAX, SamplingFields

_SAME_NAME = (
    "temperature",
    "top_p",
    "min_p",
    "repetition_penalty",
    "frequency_penalty",
    "presence_penalty",
)


def engine_requests(
    fields: SamplingFields,
    token_ids: Sequence[int],
    *,
    model: str,
    request_id: str,
    num_choices: int,
    max_tokens: int | None,
    top_logprobs: int | None,
    vocab_size: int,
) -> list[GenerateRequest]:
    """One engine request per choice; with a seed, choice `i` gets `seed + i`.

    Raises:
        ApiError: 400; a token id outside of the model's vocabulary.
    """
    sampling = _sampling(fields, vocab_size, top_logprobs)
    stop = StopConditions(
        max_tokens=max_tokens,
        min_tokens=fields.min_tokens,
        token_ids=fields.stop_token_ids or (),
        ignore_eos=fields.ignore_eos,
    )
    requests = []
    for index in range(num_choices):
        request = GenerateRequest(
            request_id=request_id if num_choices == 1 else f"{request_id}-{index}",
            model=model,
            token_ids=TokenIds(ids=token_ids),
            sampling=sampling,
            stop=stop,
        )
        if fields.seed is not None:
            request.sampling.seed = _wrapped(fields.seed + index)
        requests.append(request)
    return requests


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
    return sampling


def _wrapped(seed: int) -> int:
    """Into the range of int64."""
    return (seed + INT64_MAX + 1) % 2**64 - INT64_MAX - 1
