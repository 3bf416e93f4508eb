"""Any server behind the OpenAI API: no load, no metrics."""

from __future__ import annotations

from typing import Final

from rhizome_launcher.simulate.http.connection import Answer, HttpRequest
from rhizome_launcher.simulate.http.server import Flavour, HttpServer


def healthy(server: HttpServer, request: HttpRequest) -> Answer:
    """An empty answer, as uvicorn-based servers give it."""
    return Answer()


FLAVOUR: Final = Flavour(owned_by="simulated", routes={"/health": healthy})
