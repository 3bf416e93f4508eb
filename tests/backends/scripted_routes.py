"""An HTTP server that answers each path as a test says, and counts how often it was asked."""

from __future__ import annotations

from collections import Counter
from typing import Any

import orjson
from tests.relay.conftest import Backend, Call


class Routes(Backend):
    """Answers 404 where nothing else is said.

    Attributes:
        routes: by path with its query: a document, or status and document; bytes go out as they are. With
            `None` the question is never answered.
        asked: how often, by path.
        key: what must come as bearer token, where one must.
    """

    def __init__(self, routes: dict[str, Any], key: str = "") -> None:
        super().__init__(self._answer)
        self.routes = routes
        self.asked: Counter[str] = Counter()
        self.key = key

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    async def _answer(self, call: Call) -> None:
        path = call.request.line.split()[1].decode()
        self.asked[path] += 1
        answer = self.routes.get(path, (404, {"detail": "Not Found"}))
        if self.key and call.request.values(b"authorization") != [f"Bearer {self.key}".encode()]:
            answer = 401, {"error": {"message": "who are you"}}
        if answer is None:
            await call.until_closed()
            return
        status, document = answer if isinstance(answer, tuple) else (200, answer)
        body = document if isinstance(document, bytes) else orjson.dumps(document)
        await call.send(b"HTTP/1.1 %d X\r\nContent-Length: %d\r\n\r\n%b" % (status, len(body), body))


def models(*names: str, owned_by: str = "somebody") -> dict[str, Any]:
    """What /v1/models answers."""
    return {
        "object": "list",
        "data": [{"id": name, "object": "model", "owned_by": owned_by} for name in names],
    }
