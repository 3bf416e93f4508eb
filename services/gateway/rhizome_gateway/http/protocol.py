"""uvicorn's HTTP/1.1 protocol with a cap on headers and errors in the envelope."""

from __future__ import annotations

import http

from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

from rhizome_gateway.errors import ApiError


class _HeadersTooLargeError(Exception):
    """Ends the parsing of a request."""


def capped_protocol(max_header_bytes: int) -> type[HttpToolsProtocol]:
    """Make the protocol class for uvicorn; it keeps no more than so many bytes of URL and headers."""

    class CappedProtocol(HttpToolsProtocol):
        header_bytes = 0
        refused = False

        def on_message_begin(self) -> None:
            self.header_bytes = 0
            super().on_message_begin()

        def on_url(self, url: bytes) -> None:
            self._count(len(url))
            super().on_url(url)

        def on_header(self, name: bytes, value: bytes) -> None:
            self._count(len(name) + len(value))
            super().on_header(name, value)

        def data_received(self, data: bytes) -> None:
            if not self.refused:
                super().data_received(data)

        def send_400_response(self, msg: str) -> None:
            if self.header_bytes > max_header_bytes:
                self._refuse(
                    ApiError(
                        431,
                        f"The headers are too large; at most {max_header_bytes} bytes are accepted.",
                        code="headers_too_large",
                    )
                )
            else:
                self._refuse(ApiError(400, "This is not a valid HTTP request.", code="invalid_http"))

        def _count(self, size: int) -> None:
            self.header_bytes += size
            if self.header_bytes > max_header_bytes:
                raise _HeadersTooLargeError  # httptools turns it into a parser error

        def _refuse(self, error: ApiError) -> None:
            self.refused = True
            body = error.body()
            head = (
                f"HTTP/1.1 {error.status} {http.HTTPStatus(error.status).phrase}\r\n"
                f"content-type: application/json\r\ncontent-length: {len(body)}\r\nconnection: close\r\n\r\n"
            )
            self.transport.write(head.encode() + body)
            self.transport.close()

    return CappedProtocol
