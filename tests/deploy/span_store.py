"""Stands for the OpenTelemetry collector in a container: keeps what comes over OTLP/HTTP until it is fetched.

It runs in an image of ours, which need not know OTLP: `GET /spans` answers with all bodies behind each other,
which by protobuf's rules is one message with the contents of all, and forgets them.
"""

from __future__ import annotations

import gzip
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

PORT = 4318
_bodies: list[bytes] = []
_lock = threading.Lock()


class Handler(BaseHTTPRequestHandler):
    """One connection of an exporter, of whoever fetches, or of the health check."""

    protocol_version = "HTTP/1.1"

    def do_POST(self) -> None:
        body = self.rfile.read(int(self.headers.get("Content-Length", "0")))
        if self.path != "/v1/traces":
            self.send_error(404)
            return
        if self.headers.get("Content-Encoding") == "gzip":
            body = gzip.decompress(body)
        with _lock:
            _bodies.append(body)
        self._answer(b"")

    def do_GET(self) -> None:
        if self.path != "/spans":
            self._answer(b"")
            return
        with _lock:
            taken = b"".join(_bodies)
            _bodies.clear()
        self._answer(taken)

    def _answer(self, body: bytes) -> None:
        self.send_response(200)
        self.send_header("Content-Type", "application/x-protobuf")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, format: str, *args: object) -> None:  # noqa: A002
        pass


if __name__ == "__main__":
    ThreadingHTTPServer(("0.0.0.0", PORT), Handler).serve_forever()
