"""The tokenizer as a ZIP file in pieces, the way vLLM's contract hands it out.

Equal files give equal bytes, so two engines of one model announce the same hash.
"""

from __future__ import annotations

import hashlib
import io
import zipfile
from collections.abc import Iterator, Mapping

from smg_grpc_proto.generated import common_pb2 as common

CHUNK_BYTES = 64 * 1024
_LONG_AGO = (1980, 1, 1, 0, 0, 0)
"""The first moment that a ZIP file can name."""


def pack(files: Mapping[str, bytes]) -> bytes:
    """A ZIP file of these files by name."""
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", zipfile.ZIP_DEFLATED) as bundle:
        for name in sorted(files):
            entry = zipfile.ZipInfo(name, _LONG_AGO)
            entry.compress_type = zipfile.ZIP_DEFLATED
            entry.external_attr = 0o644 << 16
            bundle.writestr(entry, files[name])
    return buffer.getvalue()


def chunks(bundle: bytes) -> Iterator[common.GetTokenizerChunk]:
    """Cut a bundle; the last piece has the SHA-256 of all."""
    sha256 = hashlib.sha256(bundle).hexdigest()
    for start in range(0, len(bundle), CHUNK_BYTES):
        is_last = start + CHUNK_BYTES >= len(bundle)
        yield common.GetTokenizerChunk(
            data=bundle[start : start + CHUNK_BYTES], sha256=sha256 if is_last else ""
        )
