"""Tokenizer files as they travel: chunks of files, with one hash over all of them."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Iterator, Mapping

import grpc

from rhizome.engine.v1.engine_service_pb2 import GetTokenizerResponse
from rhizome_transport.client import TokenizerFiles
from rhizome_transport.errors import EngineError

CHUNK_BYTES = 256 * 1024


def files_sha256(files: Mapping[str, bytes]) -> str:
    """The hash that `GetTokenizer` defines: name, NUL, length and content of each file, sorted by name."""
    digest = hashlib.sha256()
    for name in sorted(files):
        digest.update(name.encode() + b"\0" + len(files[name]).to_bytes(8, "little") + files[name])
    return digest.hexdigest()


def split_files(files: Mapping[str, bytes]) -> Iterator[GetTokenizerResponse]:
    """Cut files into messages; an empty file is one empty chunk."""
    sha256 = files_sha256(files)
    for name in sorted(files):
        content = files[name]
        for start in range(0, max(len(content), 1), CHUNK_BYTES):
            yield GetTokenizerResponse(
                file_name=name, chunk=content[start : start + CHUNK_BYTES], sha256=sha256
            )


def join_chunks(chunks: Iterable[GetTokenizerResponse]) -> TokenizerFiles:
    """Put files together again.

    Raises:
        EngineError: DATA_LOSS, the hash does not fit.
    """
    parts: dict[str, list[bytes]] = {}
    announced = ""
    for chunk in chunks:
        parts.setdefault(chunk.file_name, []).append(chunk.chunk)
        announced = chunk.sha256 or announced
    files = {name: b"".join(pieces) for name, pieces in parts.items()}
    actual = files_sha256(files)
    if announced != actual:
        raise EngineError(
            grpc.StatusCode.DATA_LOSS,
            f"the tokenizer files arrived damaged: their sha256 is {actual}, announced was {announced!r}",
        )
    return TokenizerFiles(files, actual)
