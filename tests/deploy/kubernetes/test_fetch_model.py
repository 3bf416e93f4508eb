"""The init container's program, against a real HTTP server that breaks off, fails and lies."""

from __future__ import annotations

import hashlib
import re
import subprocess
import sys
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest
from tests.deploy.kubernetes.manifests import K8S

PROGRAM = K8S / "components/model-init-checksum/fetch_model.py"
WEIGHTS = bytes(range(256)) * 4096
FILES = {"config.json": b"{}\n", "sub/model.safetensors": WEIGHTS}


class Shelf(ThreadingHTTPServer):
    """Serves `FILES`, after what is wrong is over.

    Attributes:
        asked: path and Range header of each request.
        refusals: so many requests are answered with 503.
        cut_after: the next answer ends after so many bytes; None for whole ones.
    """

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Reader)
        self.asked: list[tuple[str, str]] = []
        self.refusals = 0
        self.cut_after: int | None = None

    @property
    def url(self) -> str:
        """Of the folder."""
        return f"http://127.0.0.1:{self.server_address[1]}/model"


class Reader(BaseHTTPRequestHandler):
    server: Shelf

    def do_GET(self) -> None:
        asked = self.headers.get("Range", "")
        self.server.asked.append((self.path, asked))
        contents = FILES.get(self.path.removeprefix("/model/"))
        if self.server.refusals:
            self.server.refusals -= 1
            self.send_error(503)
            return
        if contents is None:
            self.send_error(404)
            return
        begin = int(match[1]) if (match := re.fullmatch(r"bytes=(\d+)-", asked)) else 0
        if begin >= len(contents):
            self.send_error(416)
            return
        self.send_response(206 if begin else 200)
        self.send_header("Content-Length", str(len(contents) - begin))
        self.end_headers()
        cut, self.server.cut_after = self.server.cut_after, None
        self.wfile.write(contents[begin:] if cut is None else contents[begin : begin + cut])
        self.close_connection = True

    def log_message(self, *args: object) -> None:
        """Say nothing."""


@pytest.fixture
def shelf() -> Iterator[Shelf]:
    with Shelf() as server:
        serving = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.05})
        serving.start()
        yield server
        server.shutdown()
        serving.join()


def sums(files: dict[str, bytes]) -> str:
    """What `sha256sum` writes."""
    return "".join(f"{hashlib.sha256(text).hexdigest()}  {name}\n" for name, text in files.items())


def fetch(shelf: Shelf, folder: Path, listed: str | None = None) -> subprocess.CompletedProcess[str]:
    """Run it as the init container does."""
    folder.mkdir(exist_ok=True)
    (folder / "SHA256SUMS").write_text(sums(FILES) if listed is None else listed)
    # Its pauses between attempts would be the test's.
    code = "import runpy, time; time.sleep = lambda s: None; "
    code += f"runpy.run_path({str(PROGRAM)!r}, run_name='__main__')"
    words = ["--sums", str(folder / "SHA256SUMS"), "--into", str(folder / "model"), "--url", shelf.url]
    return subprocess.run([sys.executable, "-c", code, *words], capture_output=True, text=True, timeout=60)


def test_all_files_are_fetched_and_kept(shelf: Shelf, tmp_path: Path) -> None:
    done = fetch(shelf, tmp_path)
    assert done.returncode == 0, done.stderr
    assert {name: (tmp_path / "model" / name).read_bytes() for name in FILES} == FILES
    shelf.asked.clear()
    again = fetch(shelf, tmp_path)
    assert again.returncode == 0 and not shelf.asked, "what is there is not fetched again"


def test_a_connection_that_breaks_is_gone_on_with(shelf: Shelf, tmp_path: Path) -> None:
    shelf.cut_after = 300_000
    only = {"sub/model.safetensors": WEIGHTS}
    done = fetch(shelf, tmp_path, sums(only))
    assert done.returncode == 0, done.stderr
    assert [asked for _, asked in shelf.asked] == ["", "bytes=300000-"]
    assert (tmp_path / "model/sub/model.safetensors").read_bytes() == WEIGHTS


def test_a_server_that_fails_is_asked_again_and_not_for_ever(shelf: Shelf, tmp_path: Path) -> None:
    shelf.refusals = 4
    assert fetch(shelf, tmp_path).returncode == 0
    shelf.refusals, shelf.asked[:] = 100, []
    done = fetch(shelf, tmp_path / "more")
    assert done.returncode == 1 and len(shelf.asked) == 5
    assert "503" in done.stderr


def test_another_file_than_was_meant_is_not_kept(shelf: Shelf, tmp_path: Path) -> None:
    done = fetch(shelf, tmp_path, sums({"config.json": b"{ }"}))
    assert done.returncode == 1
    assert "expected" in done.stderr and "config.json" in done.stderr
    assert not any((tmp_path / "model").iterdir())


def test_a_file_that_is_not_there_is_said_at_once(shelf: Shelf, tmp_path: Path) -> None:
    done = fetch(shelf, tmp_path, sums({"tokenizer.json": b""}))
    assert done.returncode == 1 and "404" in done.stderr
    assert len(shelf.asked) == 1


@pytest.mark.parametrize(
    ("listed", "told"),
    [
        (f"{'0' * 64}  ../../etc/passwd\n", "leads out of the model's folder"),
        (f"{'0' * 64}  /etc/passwd\n", "leads out of the model's folder"),
        ("abc  config.json\n", "line 1 is no sum"),
        ("# nothing\n", "names no file"),
    ],
)
def test_a_list_that_is_wrong_is_refused(shelf: Shelf, tmp_path: Path, listed: str, told: str) -> None:
    done = fetch(shelf, tmp_path, listed)
    assert done.returncode == 2 and told in done.stderr
    assert not shelf.asked
