"""Fetch a checkpoint before the engine starts, and let it start only if every file is the one that was meant.

    MODEL_URL=https://host/model python fetch_model.py --sums SHA256SUMS --into /models/fetched

SHA256SUMS has a line for each file, as `sha256sum` writes them. A file that is there already and has its sum
is kept, so a container that is started again fetches nothing twice; half a file is fetched on from where it
ends. Nothing but the standard library is used.

Exit codes: 0 all files are there, 1 one could not be had or has another sum, 2 wrong arguments.
"""

from __future__ import annotations

import argparse
import hashlib
import os
import re
import sys
import time
import urllib.error
import urllib.request
from http import HTTPStatus
from pathlib import Path, PurePosixPath

CHUNK_BYTES = 1 << 20
ATTEMPTS = 5
FIRST_PAUSE_S = 1.0
SILENCE_S = 60.0
_LINE = re.compile(r"([0-9a-fA-F]{64})[ \t]+\*?(\S.*)")


class FetchError(Exception):
    """A file that cannot be used; the text says which, and why."""


def read_sums(text: str) -> dict[str, str]:
    """File name -> SHA-256.

    Raises:
        ValueError: a line is something else, or a name leads out of the folder.
    """
    sums: dict[str, str] = {}
    for number, line in enumerate(text.splitlines(), 1):
        if not line.strip() or line.startswith("#"):
            continue
        match = _LINE.fullmatch(line.rstrip())
        if match is None:
            raise ValueError(
                f"line {number} is no sum: expected 64 hexadecimal digits, two spaces, a file name"
            )
        path = PurePosixPath(match[2])
        if path.is_absolute() or ".." in path.parts:
            raise ValueError(f"line {number}: {match[2]!r} leads out of the model's folder")
        sums[str(path)] = match[1].lower()
    if not sums:
        raise ValueError("it names no file")
    return sums


def sum_of(path: Path) -> str:
    """SHA-256 of a file."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def fetch(url: str, into: Path, expected: str) -> None:
    """Fetch one file, in several attempts.

    Raises:
        FetchError: it cannot be had, or is not the one that was meant.
    """
    into.parent.mkdir(parents=True, exist_ok=True)
    if into.is_file() and sum_of(into) == expected:
        _say(f"{into.name}: here already")
        return
    part = into.with_name(into.name + ".part")
    pause_s = FIRST_PAUSE_S
    for attempt in range(1, ATTEMPTS + 1):
        try:
            _read_on(url, part)
            break
        except (OSError, urllib.error.URLError) as error:
            if isinstance(error, urllib.error.HTTPError) and error.code < HTTPStatus.INTERNAL_SERVER_ERROR:
                raise FetchError(f"{url}: the server says {error.code} {error.reason}") from None
            if attempt == ATTEMPTS:
                raise FetchError(f"{url}: {error}, {ATTEMPTS} times") from None
            _say(f"{url}: {error}; again in {pause_s:g} s")
            time.sleep(pause_s)
            pause_s *= 2
    found = sum_of(part)
    if found != expected:
        part.unlink()
        raise FetchError(f"{url} has the SHA-256 {found}, but {expected} was expected; it is not used")
    part.replace(into)
    _say(f"{into.name}: {into.stat().st_size} bytes, SHA-256 as expected")


def _read_on(url: str, part: Path) -> None:
    """Fetch what is missing of a file; from its start where the server does not know how to go on."""
    begin = part.stat().st_size if part.exists() else 0
    headers = {"Range": f"bytes={begin}-"} if begin else {}
    request = urllib.request.Request(url, headers=headers)  # noqa: S310 - `main` checked the scheme
    try:
        answer = urllib.request.urlopen(request, timeout=SILENCE_S)  # noqa: S310
    except urllib.error.HTTPError as error:
        if error.code == HTTPStatus.REQUESTED_RANGE_NOT_SATISFIABLE:  # it is all there; its sum will tell
            return
        raise
    with answer:
        goes_on = answer.status == HTTPStatus.PARTIAL_CONTENT
        length = answer.headers.get("Content-Length")
        got = 0
        with part.open("ab" if goes_on else "wb") as file:
            while chunk := answer.read(CHUNK_BYTES):
                got += file.write(chunk)
        if length is not None and got < int(length):
            raise OSError(f"the connection ended after {got} of {length} bytes")


def _say(text: str) -> None:
    sys.stderr.write(f"{text}\n")


def main(arguments: list[str] | None = None) -> int:
    """Fetch everything that the list names."""
    parser = argparse.ArgumentParser(
        prog="fetch_model.py", description="fetch a checkpoint and check its sums"
    )
    parser.add_argument("--sums", type=Path, required=True, help="lines of `sha256sum`")
    parser.add_argument("--into", type=Path, required=True, help="the model's folder")
    parser.add_argument(
        "--url", default=os.environ.get("MODEL_URL", ""), help="where the files are; or MODEL_URL"
    )
    options = parser.parse_args(arguments)
    if not options.url.startswith(("http://", "https://")):
        parser.error(f"--url or MODEL_URL must be an http:// or https:// address, not {options.url!r}")
    try:
        sums = read_sums(options.sums.read_text())
    except (OSError, ValueError) as error:
        parser.error(f"{options.sums}: {error}")
    try:
        for name, expected in sums.items():
            fetch(f"{options.url.rstrip('/')}/{name}", options.into / name, expected)
    except (FetchError, OSError) as error:
        _say(f"fetch_model.py: {error}")
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
