"""`python -m rhizome_gateway.probe [URL]`: a health probe for containers.

Exit codes: 0 yes, 1 no, 2 unreachable. Images need no curl then. Standard library only, so that a probe every
few seconds costs next to nothing.
"""

from __future__ import annotations

import argparse
import http.client
import os
import sys
from urllib.parse import urlsplit

YES, NO, UNREACHABLE = 0, 1, 2


def probe(url: str, timeout_s: float = 3.0) -> tuple[int, str]:
    """Ask once; environment variables that name HTTP proxies do not count.

    Returns:
        The exit code and a line for people.

    Raises:
        ValueError: it is no `http://` URL.
    """
    parts = urlsplit(url)
    if parts.scheme != "http" or not parts.hostname:
        raise ValueError(f"{url!r} is no http:// URL")
    connection = http.client.HTTPConnection(parts.hostname, parts.port, timeout=timeout_s)
    try:
        connection.request("GET", parts.path or "/")
        status = connection.getresponse().status
    except (OSError, http.client.HTTPException) as error:
        return UNREACHABLE, f"{url}: {error or type(error).__name__}"
    finally:
        connection.close()
    return (YES if status == http.HTTPStatus.OK else NO), f"{url}: {status}"


def main(arguments: list[str] | None = None) -> int:
    """Parse the command line, probe, print one line."""
    port = os.environ.get("RHIZOME_GATEWAY_PORT") or os.environ.get("PORT") or "8000"
    parser = argparse.ArgumentParser(prog="rhizome_gateway.probe", description="HTTP health probe")
    parser.add_argument(
        "url",
        nargs="?",
        default=f"http://127.0.0.1:{port}/ready",
        help="/health asks whether it lives, /ready whether it can answer; default: %(default)s",
    )
    parser.add_argument("--timeout", type=float, default=3.0, help="seconds")
    options = parser.parse_args(arguments)
    try:
        code, line = probe(options.url, options.timeout)
    except ValueError as error:
        parser.error(str(error))
    stream = sys.stdout if code == YES else sys.stderr
    stream.write(f"{line}\n")
    return code


if __name__ == "__main__":
    sys.exit(main())
