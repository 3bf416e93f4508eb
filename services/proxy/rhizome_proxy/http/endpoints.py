"""What the HTTP face answers itself: health, models, metrics, and what there is."""

from __future__ import annotations

import html
import time
from collections.abc import Awaitable, Callable
from typing import Any, Final

import orjson
from prometheus_client import CollectorRegistry, generate_latest

from rhizome_proxy.metrics import ProxyCollector
from rhizome_proxy.pool.backend import Backend
from rhizome_proxy.pool.registry import Registry
from rhizome_relay.answer import Answer, Handler
from rhizome_relay.errors import HttpError
from rhizome_relay.request import RelayRequest

_MODELS: Final = b"/v1/models"
_MODEL: Final = b"/v1/models/"
_ALLOW: Final = ((b"allow", b"GET, HEAD"),)
_HTML: Final = b"text/html; charset=utf-8"
_POLICY: Final = ((b"content-security-policy", b"default-src 'none'; style-src 'unsafe-inline'"),)

_ROUTES: Final = (
    ("GET", "/", "Welcome: name and version, and where to go on."),
    ("GET", "/health", "All backends, their state and load. 503 when none for HTTP is available or the "
     "proxy is on its way down."),
    ("GET", "/live", "Whether this process works, whatever its backends do."),
    ("GET", "/metrics", "Figures for Prometheus."),
    ("GET", "/v1/models", "Models and aliases of all backends together."),
    ("GET", "/v1/models/{model}", "One of them."),
    ("ANY", "/v1/…", "Passed to the backend that suits best, streams as they come. Other paths of inference "
     "servers too: /completion, /tokenize, /generate, /api/chat, …"),
)  # fmt: skip


class Endpoints:
    """Handlers by path.

    Args:
        registry: the pool.
        collector: what `/metrics` shows.
        draining: whether the proxy is on its way down.
    """

    def __init__(self, registry: Registry, collector: ProxyCollector, draining: Callable[[], bool]) -> None:
        self._registry = registry
        self._draining = draining
        self._metrics = CollectorRegistry(auto_describe=False)
        self._metrics.register(collector)
        self._began = int(time.time())
        self._pages: dict[bytes, Callable[[], Answer]] = {
            b"/": self._welcome,
            b"/health": self._health,
            b"/live": lambda: _json({"status": "ok"}),
            b"/metrics": self._exposition,
            b"/docs": _docs,
            b"/redoc": _docs,
            _MODELS: lambda: _json({"object": "list", "data": self._models()}),
        }

    def handler(self, path: bytes) -> Handler | None:
        """Who answers a path; `None` leaves it to the backends."""
        bare = path.rstrip(b"/") or b"/"
        page = self._pages.get(bare)
        if page is not None:
            return _reading(page)
        if bare.startswith(_MODEL):
            name = bare[len(_MODEL) :].decode("utf-8", "replace")
            return _reading(lambda: self._model(name))
        return None

    def _welcome(self) -> Answer:
        return _json({"name": "rhizome-proxy", "docs": "/docs", "health": "/health", "models": "/v1/models"})

    def _health(self) -> Answer:
        backends = list(self._registry)
        available = [backend.spec.address for backend in backends if backend.ready]
        status = "ok" if len(available) == len(backends) else "degraded"
        of_ours = [backend for backend in backends if backend.spec.http] or backends
        if self._draining() or not any(backend.ready for backend in of_ours):
            status = "draining" if self._draining() else "unavailable"
        body = {
            "status": status,
            "available_backends": available,
            "total_backends": len(backends),
            "timestamp": time.time(),
            "details": [_detail(backend) for backend in backends],
        }
        return _json(body, 200 if status in ("ok", "degraded") else 503)

    def _models(self) -> list[dict[str, Any]]:
        owners: dict[str, str] = {}
        for backend in self._registry:
            if backend.spec.http and backend.ready:
                aliases = [name for name in backend.spec.aliases if name != "*" and backend.own_name(name)]
                for model in (*backend.models, *aliases):
                    owners.setdefault(model, backend.server.kind)
        return [
            {"id": model, "object": "model", "created": self._began, "owned_by": owner}
            for model, owner in sorted(owners.items())
        ]

    def _model(self, name: str) -> Answer:
        for model in self._models():
            if model["id"] == name:
                return _json(model)
        raise HttpError(404, "model_not_found", "No backend serves this model; GET /v1/models lists them.")

    def _exposition(self) -> Answer:
        return Answer(200, generate_latest(self._metrics), b"text/plain; version=0.0.4; charset=utf-8")


def _detail(backend: Backend) -> dict[str, Any]:
    """One backend as `/health` shows it; `metrics` has what deployments of other proxies read."""
    load = backend.report.load if backend.report is not None else None
    known = load is not None and load.HasField("running_requests")
    metrics: dict[str, Any] = {
        "timestamp": backend.last_seen,
        "requests_processing": float(load.running_requests) if load is not None and known else None,
        "requests_deferred": float(load.waiting_requests) if load is not None and known else None,
        "ready": backend.ready,
    }
    return {
        "backend": backend.spec.address,
        "name": backend.name,
        "kind": backend.server.kind or None,
        "state": backend.state.name.lower(),
        "reason": backend.reason or None,
        "ready": backend.ready,
        "busy": backend.busy,
        "models": backend.models,
        "in_flight": backend.in_flight,
        "metrics": metrics,
    }


def _json(document: Any, status: int = 200) -> Answer:
    return Answer(status, orjson.dumps(document))


def _docs() -> Answer:
    rows = "".join(
        f"<tr><td>{method}</td><td><code>{html.escape(path)}</code></td><td>{html.escape(text)}</td></tr>"
        for method, path, text in _ROUTES
    )
    page = (
        "<!doctype html><html lang=en><meta charset=utf-8><title>rhizome-proxy</title>"
        "<style>body{font:16px/1.5 system-ui;max-width:60rem;margin:3rem auto;padding:0 1rem}"
        ":root{color-scheme:light dark}td{padding:.3rem .8rem;vertical-align:top;border-top:1px solid #8884}"
        "code{white-space:nowrap}</style>"
        f"<h1>rhizome-proxy</h1><p>One address in front of many inference servers.</p><table>{rows}</table>"
        "<p>Answers say which backend gave them (<code>x-rhizome-backend</code>), after how many attempts "
        "(<code>x-rhizome-attempts</code>) and how long that took (<code>server-timing</code>).</p>"
    )
    return Answer(200, page.encode(), _HTML, headers=_POLICY)


def _reading(page: Callable[[], Answer]) -> Handler:
    async def answer(request: RelayRequest) -> Answer:
        if request.method not in (b"GET", b"HEAD"):
            raise HttpError(405, "method_not_allowed", "This path is only for reading.", headers=_ALLOW)
        return page()

    handler: Callable[[RelayRequest], Awaitable[Answer]] = answer
    return handler
