"""llama.cpp's server: metrics where it was started with `--metrics`, else its slots. 503 while it loads."""

from __future__ import annotations

from typing import Final

import orjson

from rhizome.engine.v1.load_pb2 import Load
from rhizome_backends.http_server import HttpBackend, load_of
from rhizome_telemetry.exposition import read_samples, total

_PROCESSING: Final = "llamacpp:requests_processing"
_DEFERRED: Final = "llamacpp:requests_deferred"


def read_metrics(page: bytes) -> Load | None:
    """Requests that have a slot, and those that wait for one. It tells nothing of its cache."""
    found = read_samples(page, _PROCESSING, _DEFERRED)
    return load_of(running_requests=total(found[_PROCESSING]), waiting_requests=total(found[_DEFERRED]))


def read_slots(body: bytes) -> Load | None:
    """Nobody waits while a slot is free; how many do when none is, slots do not tell."""
    busy = [bool(slot["is_processing"]) for slot in orjson.loads(body)]
    return load_of(running_requests=sum(busy), waiting_requests=None if all(busy) else 0)


class LlamaCppServer(HttpBackend):
    """A server of llama.cpp."""

    kind = "llamacpp"
    sources = ((b"/metrics", read_metrics), (b"/slots", read_slots))
