"""Server-sent events, just enough of them: the `data` lines of a stream, as raw bytes."""

from __future__ import annotations

from collections.abc import Iterator


class SseLines:
    """Cuts a byte stream into the payloads of its `data:` lines, however the network cut it.

    OpenAI's streams have one data line per event, so events need not be put together.
    """

    def __init__(self) -> None:
        self._rest = b""

    def feed(self, data: bytes) -> Iterator[bytes]:
        """Yield the payloads that are complete now; comments and other fields are skipped."""
        lines = (self._rest + data).split(b"\n")
        self._rest = lines.pop()
        for line in lines:
            if line.startswith(b"data:"):
                yield line[5:].strip()
