"""What the core serves, as `GetModelInfo` and `GetTokenizer` tell it."""

from __future__ import annotations

import importlib.metadata
import time
from collections.abc import Mapping
from dataclasses import dataclass, field

import torch
from google.protobuf.timestamp_pb2 import Timestamp

from rhizome.engine.v1 import engine_service_pb2, generate_pb2
from rhizome.engine.v1.engine_service_pb2 import GetModelInfoResponse
from rhizome_engine.checkpoint.generation import GenerationDefaults
from rhizome_engine.embedding.pooling import Pooling
from rhizome_engine.embedding.recommendation import PoolingRecommendation, read_recommendation
from rhizome_engine.runner import ModelRunner
from rhizome_engine.sampling.params import SamplingParams
from rhizome_engine.settings import CoreSettings
from rhizome_text.tokenizer_files import read_tokenizer_files, tokenizer_sha256

POOLING_NUMBERS = {
    None: engine_service_pb2.POOLING_UNSPECIFIED,
    Pooling.MEAN: engine_service_pb2.POOLING_MEAN,
    Pooling.LAST_TOKEN: engine_service_pb2.POOLING_LAST_TOKEN,
    Pooling.CLS: engine_service_pb2.POOLING_CLS,
}
"""Poolings as the contract has them."""


@dataclass(frozen=True, slots=True)
class ServedModel:
    """A loaded model's description.

    Attributes:
        name: under which it is served.
        info: the answer to `GetModelInfo`.
        tokenizer_files: what `GetTokenizer` hands out, content by name.
        default_sampling: for sampling settings that a request leaves out.
        pooling: for `Embed` requests that leave it out.
    """

    name: str
    info: GetModelInfoResponse
    tokenizer_files: Mapping[str, bytes]
    default_sampling: SamplingParams
    pooling: PoolingRecommendation = field(default_factory=PoolingRecommendation)


def describe_model(
    settings: CoreSettings, runner: ModelRunner, max_context_tokens: int, instance_id: str
) -> ServedModel:
    """Describe what `runner` holds.

    Raises:
        FileNotFoundError: the checkpoint has no tokenizer.json.
    """
    files = read_tokenizer_files(settings.model)
    defaults = default_sampling(runner.checkpoint.generation)
    pooling = read_recommendation(settings.model)
    start_time = Timestamp()
    start_time.FromNanoseconds(time.time_ns())
    info = GetModelInfoResponse(
        model=settings.served_model_name,
        instance_id=instance_id,
        start_time=start_time,
        architecture=runner.config.architecture,
        max_context_tokens=max_context_tokens,
        vocab_size=runner.config.vocab_size,
        eos_token_ids=runner.checkpoint.eos_token_ids,
        dtype=_dtype_name(runner.numerics.weight_dtype),
        device=runner.placement,
        attention_backend=runner.attention.name,
        num_parameters=runner.model.targets.num_parameters,
        tokenizer_sha256=tokenizer_sha256(files),
        default_sampling=generate_pb2.SamplingParams(
            temperature=defaults.temperature,
            top_p=defaults.top_p,
            top_k=defaults.top_k,
            min_p=defaults.min_p,
            repetition_penalty=defaults.repetition_penalty,
        ),
        page_size=runner.page_size,
        kv_pages_total=runner.num_pages,
        version=importlib.metadata.version("rhizome-engine"),
        default_pooling=POOLING_NUMBERS[pooling.pooling],
        embedding_size=runner.config.hidden_size,
        quantization=runner.quantization,
        weight_format=runner.weights_name,
        kernels=runner.numerics.kernels.name,
        kv_cache_dtype=_dtype_name(runner.numerics.kv_dtype),
    )
    return ServedModel(settings.served_model_name, info, files, defaults, pooling)


def _dtype_name(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")


def default_sampling(generation: GenerationDefaults) -> SamplingParams:
    """The checkpoint's recommendation, neutral where it is silent."""
    names = ("temperature", "top_p", "top_k", "min_p", "repetition_penalty")
    recommended = {name: getattr(generation, name) for name in names}
    return SamplingParams(**{name: value for name, value in recommended.items() if value is not None})
