"""Text Generation Inference."""

from __future__ import annotations

from typing import Final

from rhizome.engine.v1.load_pb2 import Load
from rhizome_backends.http_server import HttpBackend, load_of
from rhizome_telemetry.exposition import read_samples, total

_RUNNING: Final = "tgi_batch_current_size"
_WAITING: Final = "tgi_queue_size"


def read_load(page: bytes) -> Load | None:
    """Its batch and its queue."""
    found = read_samples(page, _RUNNING, _WAITING)
    return load_of(running_requests=total(found[_RUNNING]), waiting_requests=total(found[_WAITING]))


class TgiServer(HttpBackend):
    """A server of Text Generation Inference."""

    kind = "tgi"
    sources = ((b"/metrics", read_load),)
