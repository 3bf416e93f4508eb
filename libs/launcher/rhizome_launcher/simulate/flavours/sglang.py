"""SGLang's routes, with `--enable-metrics`."""

from __future__ import annotations

import time
from datetime import UTC, datetime
from typing import Any, Final

from rhizome_launcher.simulate.flavours.openai import healthy
from rhizome_launcher.simulate.http.connection import Answer, HttpRequest
from rhizome_launcher.simulate.http.server import Flavour, HttpServer
from rhizome_launcher.simulate.metrics import CONTENT_TYPE, exposition

_VERSION: Final = "0.5.9"


def _figures(server: HttpServer) -> dict[str, Any]:
    engine, physics = server.engine, server.engine.physics
    capacity = physics.kv_blocks * physics.block_size
    return {
        "num_running_reqs": engine.running,
        "num_waiting_reqs": engine.waiting,
        "num_waiting_uncached_tokens": engine.waiting_tokens,
        "num_used_tokens": engine.pool.in_use * physics.block_size,
        "max_total_num_tokens": capacity,
        "token_usage": engine.kv_usage,
        "gen_throughput": engine.tokens_per_s(server.heart.now()),
        "cache_hit_rate": engine.hit_rate,
        "max_running_requests": physics.max_running,
    }


def _metrics(server: HttpServer, request: HttpRequest) -> Answer:
    figures, totals, physics = _figures(server), server.engine.totals, server.engine.physics
    page = (
        ("gauge", "sglang:num_running_reqs", figures["num_running_reqs"]),
        ("gauge", "sglang:num_queue_reqs", figures["num_waiting_reqs"]),
        ("gauge", "sglang:num_used_tokens", figures["num_used_tokens"]),
        ("gauge", "sglang:token_usage", figures["token_usage"]),
        ("gauge", "sglang:gen_throughput", figures["gen_throughput"]),
        ("gauge", "sglang:cache_hit_rate", figures["cache_hit_rate"]),
        ("gauge", "sglang:max_total_num_tokens", figures["max_total_num_tokens"]),
        ("counter", "sglang:prompt_tokens_total", totals.prompt_tokens),
        ("counter", "sglang:generation_tokens_total", totals.generated_tokens),
        ("counter", "sglang:cached_tokens_total", totals.cached_tokens),
        ("counter", "sglang:num_requests_total", totals.completed),
        ("counter", "sglang:num_aborted_requests_total", totals.aborted),
        (
            "gauge",
            f'sglang:cache_config_info{{page_size="{physics.block_size}",num_pages="{physics.kv_blocks}"}}',
            1,
        ),
    )
    labels = {"engine_type": "unified", "model_name": server.model, "tp_rank": "0"}
    return Answer(exposition(page, labels), content_type=CONTENT_TYPE)


def _loads(server: HttpServer, request: HttpRequest) -> Answer:
    figures = _figures(server)
    total = figures["num_running_reqs"] + figures["num_waiting_reqs"]
    load = {
        "dp_rank": 0,
        "timestamp": time.time(),
        **figures,
        "num_total_reqs": total,
        "utilization": figures["num_running_reqs"] / figures["max_running_requests"],
    }
    aggregate = {
        "total_running_reqs": figures["num_running_reqs"],
        "total_waiting_reqs": figures["num_waiting_reqs"],
        "total_reqs": total,
        "avg_token_usage": figures["token_usage"],
        "avg_throughput": figures["gen_throughput"],
    }
    return Answer.json(
        {
            "timestamp": datetime.now(UTC).isoformat(),
            "version": _VERSION,
            "dp_rank_count": 1,
            "loads": [load],
            "aggregate": aggregate,
        }
    )


def _server_info(server: HttpServer, request: HttpRequest) -> Answer:
    physics = server.engine.physics
    return Answer.json(
        {
            "model_path": server.model,
            "served_model_name": server.model,
            "version": _VERSION,
            "page_size": physics.block_size,
            "max_total_num_tokens": physics.kv_blocks * physics.block_size,
            "max_running_requests": physics.max_running,
            "disable_radix_cache": not physics.prefix_cache,
            "enable_metrics": True,
            "internal_states": [_figures(server)],
        }
    )


def _model_info(server: HttpServer, request: HttpRequest) -> Answer:
    return Answer.json({"model_path": server.model, "tokenizer_path": server.model, "is_generation": True})


def _model_details(server: HttpServer) -> dict[str, Any]:
    return {"root": server.model, "parent": None, "max_model_len": server.context_tokens}


FLAVOUR: Final = Flavour(
    owned_by="sglang",
    routes={
        "/health": healthy,
        "/health_generate": healthy,
        "/metrics": _metrics,
        "/v1/loads": _loads,
        "/get_server_info": _server_info,
        "/server_info": _server_info,
        "/get_model_info": _model_info,
        "/model_info": _model_info,
    },
    health=frozenset({"/health", "/health_generate"}),
    model_details=_model_details,
)
