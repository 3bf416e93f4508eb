"""The routes of llama.cpp's server, with `--metrics`. Its current versions tell nothing of the KV cache."""

from __future__ import annotations

from typing import Any, Final

import orjson

from rhizome_launcher.simulate.http.completion import text_tokens
from rhizome_launcher.simulate.http.connection import Answer, HttpRequest
from rhizome_launcher.simulate.http.server import Flavour, HttpServer
from rhizome_launcher.simulate.metrics import CONTENT_TYPE, exposition


def _health(server: HttpServer, request: HttpRequest) -> Answer:
    return Answer.json({"status": "ok"})


def _metrics(server: HttpServer, request: HttpRequest) -> Answer:
    engine, totals = server.engine, server.engine.totals
    computed = totals.prompt_tokens - totals.cached_tokens
    figures = (
        ("counter", "llamacpp:prompt_tokens_total", computed),
        ("counter", "llamacpp:prompt_seconds_total", totals.prefill_s),
        ("counter", "llamacpp:tokens_predicted_total", totals.generated_tokens),
        ("counter", "llamacpp:tokens_predicted_seconds_total", totals.decode_s),
        ("counter", "llamacpp:n_decode_total", totals.steps),
        ("counter", "llamacpp:n_busy_slots_per_decode", totals.batched / max(1, totals.steps)),
        ("gauge", "llamacpp:prompt_tokens_seconds", computed / max(totals.prefill_s, 1e-9)),
        ("gauge", "llamacpp:predicted_tokens_seconds", totals.generated_tokens / max(totals.decode_s, 1e-9)),
        ("gauge", "llamacpp:requests_processing", engine.running),
        ("gauge", "llamacpp:requests_deferred", engine.waiting),
    )
    return Answer(exposition(figures), content_type=CONTENT_TYPE)


def _slots(server: HttpServer, request: HttpRequest) -> Answer:
    batch = server.engine.batch
    slots = []
    for number in range(server.engine.physics.max_running):
        slot: dict[str, Any] = {
            "id": number,
            "n_ctx": server.context_tokens,
            "speculative": False,
            "is_processing": number < len(batch),
        }
        if number < len(batch):
            one = batch[number]
            slot["next_token"] = [
                {
                    "has_next_token": True,
                    "n_decoded": one.generated,
                    "n_remain": one.max_tokens - one.generated,
                }
            ]
        slots.append(slot)
    return Answer.json(slots)


def _props(server: HttpServer, request: HttpRequest) -> Answer:
    return Answer.json(
        {
            "default_generation_settings": {"n_ctx": server.context_tokens},
            "total_slots": server.engine.physics.max_running,
            "model_alias": server.model,
            "model_path": f"{server.model}.gguf",
            "is_sleeping": False,
        }
    )


def _tokenize(server: HttpServer, request: HttpRequest) -> Answer:
    try:
        return Answer.json({"tokens": text_tokens(orjson.loads(request.body)["content"])})
    except (orjson.JSONDecodeError, KeyError, TypeError, AttributeError):
        return Answer.error(400, "the body must be a JSON object with a text as content")


def _model_details(server: HttpServer) -> dict[str, Any]:
    return {"meta": {"n_ctx_train": server.context_tokens, "n_vocab": len(server.engine.vocabulary)}}


FLAVOUR: Final = Flavour(
    owned_by="llamacpp",
    routes={
        "/health": _health,
        "/v1/health": _health,
        "/metrics": _metrics,
        "/slots": _slots,
        "/props": _props,
        "/tokenize": _tokenize,
    },
    health=frozenset({"/health", "/v1/health"}),
    early_headers=False,
    continues_assistant=True,
    timings=True,
    model_details=_model_details,
)
