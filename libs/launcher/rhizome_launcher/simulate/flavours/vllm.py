"""vLLM's routes; names of metrics as of version 0.29."""

from __future__ import annotations

from typing import Any, Final

import orjson

from rhizome_launcher.simulate.flavours.openai import healthy
from rhizome_launcher.simulate.http.completion import text_tokens
from rhizome_launcher.simulate.http.connection import Answer, HttpRequest
from rhizome_launcher.simulate.http.server import Flavour, HttpServer
from rhizome_launcher.simulate.metrics import CONTENT_TYPE, exposition

_VERSION: Final = "0.29.0"


def _metrics(server: HttpServer, request: HttpRequest) -> Answer:
    engine, totals = server.engine, server.engine.totals
    physics = engine.physics
    figures = (
        ("gauge", "vllm:num_requests_running", engine.running),
        ("gauge", "vllm:num_requests_waiting", engine.waiting),
        ("gauge", "vllm:kv_cache_usage_perc", engine.kv_usage),
        ("counter", "vllm:prefix_cache_queries_total", totals.prompt_tokens),
        ("counter", "vllm:prefix_cache_hits_total", totals.cached_tokens),
        ("counter", "vllm:num_preemptions_total", totals.preemptions),
        ("counter", "vllm:prompt_tokens_total", totals.prompt_tokens),
        ("counter", "vllm:generation_tokens_total", totals.generated_tokens),
        ("counter", 'vllm:request_success_total{finished_reason="length"}', totals.completed),
        (
            "gauge",
            f'vllm:cache_config_info{{block_size="{physics.block_size}",num_gpu_blocks="{physics.kv_blocks}",'
            f'enable_prefix_caching="{physics.prefix_cache}"}}',
            1,
        ),
    )
    return Answer(exposition(figures, {"engine": "0", "model_name": server.model}), content_type=CONTENT_TYPE)


def _load(server: HttpServer, request: HttpRequest) -> Answer:
    return Answer.json({"server_load": server.engine.running + server.engine.waiting})


def _version(server: HttpServer, request: HttpRequest) -> Answer:
    return Answer.json({"version": _VERSION})


def _tokenize(server: HttpServer, request: HttpRequest) -> Answer:
    try:
        prompt = orjson.loads(request.body)["prompt"]
        tokens = text_tokens(prompt)
    except (orjson.JSONDecodeError, KeyError, TypeError, AttributeError):
        return Answer.error(400, "the body must be a JSON object with a text as prompt")
    limit = server.context_tokens
    return Answer.json({"count": len(tokens), "max_model_len": limit, "tokens": tokens, "token_strs": None})


def _model_details(server: HttpServer) -> dict[str, Any]:
    return {"root": server.model, "parent": None, "max_model_len": server.context_tokens, "permission": []}


FLAVOUR: Final = Flavour(
    owned_by="vllm",
    routes={
        "/health": healthy,
        "/ping": healthy,
        "/metrics": _metrics,
        "/load": _load,
        "/version": _version,
        "/tokenize": _tokenize,
    },
    health=frozenset({"/health", "/ping"}),
    model_details=_model_details,
)
