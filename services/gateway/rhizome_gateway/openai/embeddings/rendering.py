"""Vectors as OpenAI's API shows them."""

from __future__ import annotations

import sys
from array import array
from base64 import b64encode
from collections.abc import Iterable

import orjson

from rhizome.engine.v1.engine_service_pb2 import EmbedResponse


def embedding_list(response: EmbedResponse, model: str, *, base64: bool) -> bytes:
    """The body of a response; written vector by vector, since numbers take ten times as much in Python.

    Args:
        response: the engine's.
        model: the name that the client asked for.
        base64: write each vector as base64 of its bytes, and not as a list of numbers.
    """
    encode = _base64 if base64 else _floats
    data = [
        b'{"object":"embedding","index":%d,"embedding":%b}' % (index, encode(embedding.values))
        for index, embedding in enumerate(response.embeddings)
    ]
    tokens = response.usage.prompt_tokens
    usage = {"prompt_tokens": tokens, "total_tokens": tokens}
    return b'{"object":"list","data":[%b],"model":%b,"usage":%b}' % (
        b",".join(data),
        orjson.dumps(model),
        orjson.dumps(usage),
    )


def _floats(values: Iterable[float]) -> bytes:
    return orjson.dumps(list(values))


def _base64(values: Iterable[float]) -> bytes:
    numbers = array("f", values)
    if sys.byteorder == "big":
        numbers.byteswap()
    return b'"%b"' % b64encode(numbers.tobytes())
