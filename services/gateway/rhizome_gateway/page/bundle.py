"""The files of the page, as `make page` built them from `services/gateway/ui`.

They are small and never change while the gateway runs, so each is read and compressed once, at the first
request for any of them.
"""

from __future__ import annotations

import gzip
import hashlib
import mimetypes
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from pathlib import Path

FOLDER = Path(__file__).parent / "bundle"
_NOT_SERVED = (".br", ".sha256")


@dataclass(frozen=True, slots=True)
class PageFile:
    """One file, ready to be sent.

    Attributes:
        media_type: with its charset.
        bodies: by content coding; `identity` is always there.
        etags: by content coding, each body having its own.
        immutable: its name holds its hash, so browsers need not ask again.
    """

    media_type: str
    bodies: Mapping[str, bytes]
    etags: Mapping[str, str]
    immutable: bool

    def coding(self, accepted: str) -> str:
        """The smallest body that a client takes.

        Args:
            accepted: its `Accept-Encoding`.
        """
        offers = dict(_offer(part) for part in accepted.lower().split(","))
        taken = [coding for coding in self.bodies if offers.get(coding, offers.get("*", False))]
        return min(taken, key=lambda coding: len(self.bodies[coding]), default="identity")


def _offer(part: str) -> tuple[str, bool]:
    """`gzip;q=0` is a coding that is not taken."""
    coding, _, parameters = part.partition(";")
    weight = parameters.strip().removeprefix("q=")
    return coding.strip(), weight.strip("0.") != "" or not weight


@cache
def page_files(folder: Path = FOLDER) -> Mapping[str, PageFile]:
    """The files by their path on the server: `/`, `/assets/…`; empty where the page was not built."""
    return {
        "/" if path.name == "index.html" else f"/{path.relative_to(folder).as_posix()}": _read(path)
        for path in sorted(folder.rglob("*"))
        if path.is_file() and path.suffix not in _NOT_SERVED
    }


def _read(path: Path) -> PageFile:
    content = path.read_bytes()
    bodies = {"identity": content, "gzip": gzip.compress(content, 9, mtime=0)}
    brotli = path.with_name(f"{path.name}.br")
    if brotli.exists():
        bodies["br"] = brotli.read_bytes()
    media_type = mimetypes.guess_type(path.name)[0] or "application/octet-stream"
    if media_type.startswith("text/"):
        media_type += "; charset=utf-8"
    digest = hashlib.sha256(content).hexdigest()[:20]
    etags = {coding: f'"{digest}-{coding}"' for coding in bodies}
    return PageFile(media_type, bodies, etags, immutable=path.name != "index.html")
