"""The routes of Text Generation Inference."""

from __future__ import annotations

from typing import Final

from rhizome_launcher.simulate.flavours.openai import healthy
from rhizome_launcher.simulate.http.connection import Answer, HttpRequest
from rhizome_launcher.simulate.http.server import Flavour, HttpServer
from rhizome_launcher.simulate.metrics import CONTENT_TYPE, exposition


def _info(server: HttpServer, request: HttpRequest) -> Answer:
    physics = server.engine.physics
    return Answer.json(
        {
            "model_id": server.model,
            "model_sha": None,
            "model_pipeline_tag": "text-generation",
            "max_concurrent_requests": 4 * physics.max_running,
            "max_best_of": 1,
            "max_stop_sequences": 0,
            "max_input_tokens": server.context_tokens - 1,
            "max_total_tokens": server.context_tokens,
            "validation_workers": 1,
            "max_client_batch_size": 1,
            "router": "text-generation-router",
            "version": "3.3.6",
            "sha": None,
            "docker_label": None,
        }
    )


def _metrics(server: HttpServer, request: HttpRequest) -> Answer:
    engine, totals = server.engine, server.engine.totals
    figures = (
        ("gauge", "tgi_queue_size", engine.waiting),
        ("gauge", "tgi_batch_current_size", engine.running),
        ("gauge", "tgi_batch_current_max_tokens", engine.pool.in_use * engine.physics.block_size),
        ("counter", "tgi_request_count", totals.received),
        ("counter", "tgi_request_success", totals.completed),
        ("counter", "tgi_batch_inference_count", totals.steps),
    )
    return Answer(exposition(figures), content_type=CONTENT_TYPE)


FLAVOUR: Final = Flavour(
    owned_by="",
    routes={"/health": healthy, "/ping": healthy, "/info": _info, "/metrics": _metrics},
    health=frozenset({"/health", "/ping"}),
)
