"""The page's files: who gets them how, and that they are what their source gives."""

from __future__ import annotations

import gzip
import hashlib
import re
import shutil
import subprocess
from collections.abc import AsyncIterator
from pathlib import Path

import httpx
import pytest

from rhizome_gateway.app import Gateway
from rhizome_gateway.page.bundle import FOLDER, page_files
from rhizome_gateway.settings import GatewaySettings

SOURCE = Path(__file__).parents[2] / "services/gateway/ui"
KEYS = '[[keys]]\nname = "a"\nsha256 = "{}"\n'
BUDGET_BYTES = 120_000


@pytest.fixture
async def http(tmp_path: Path) -> AsyncIterator[httpx.AsyncClient]:
    """A gateway with keys that nobody has."""
    keys = tmp_path / "keys.toml"
    keys.write_text(KEYS.format(hashlib.sha256(b"sk-known").hexdigest()))
    keys.chmod(0o600)
    app = Gateway(GatewaySettings(engine="127.0.0.1:1", keys_file=keys))
    transport = httpx.ASGITransport(app)
    async with httpx.AsyncClient(transport=transport, base_url="http://127.0.0.1") as client:
        yield client


async def test_the_page_needs_no_key_and_what_it_asks_for_does(http: httpx.AsyncClient):
    assert (await http.get("/")).status_code == 200
    for path in page_files():
        assert (await http.get(path)).status_code == 200
    for path in ("/v1/rhizome/pulse", "/v1/rhizome/cache", "/v1/metrics", "/assets", "/index.html"):
        assert (await http.get(path)).status_code == 401


async def test_every_file_has_the_policy(http: httpx.AsyncClient):
    for path in page_files():
        headers = (await http.get(path)).headers
        policy = headers["content-security-policy"]
        assert policy.startswith("default-src 'none'; script-src 'self'; style-src 'self'")
        assert "unsafe" not in policy and "*" not in policy and "http" not in policy
        assert headers["x-content-type-options"] == "nosniff"
        assert headers["referrer-policy"] == "no-referrer"


async def test_all_codings_hold_the_same_and_the_smallest_is_sent(http: httpx.AsyncClient):
    for path, file in page_files().items():
        assert gzip.decompress(file.bodies["gzip"]) == file.bodies["identity"]
        plain = await http.get(path, headers={"accept-encoding": "identity"})
        assert "content-encoding" not in plain.headers and plain.content == file.bodies["identity"]
        packed = await http.get(path, headers={"accept-encoding": "gzip, deflate"})
        assert packed.headers["content-encoding"] == "gzip" and packed.content == plain.content
        refused = await http.get(path, headers={"accept-encoding": "gzip;q=0, br;q=0"})
        assert "content-encoding" not in refused.headers
        assert file.coding("gzip, deflate, br, zstd") == "br"
        assert file.coding("*") == "br"
        assert len(file.bodies["br"]) < len(file.bodies["gzip"]) < len(file.bodies["identity"])


async def test_what_a_browser_has_it_does_not_get_again(http: httpx.AsyncClient):
    for path in page_files():
        first = await http.get(path)
        again = await http.get(path, headers={"if-none-match": f'"other", W/{first.headers["etag"]}'})
        assert again.status_code == 304 and again.content == b""
        kept = "no-cache" if path == "/" else "public, max-age=31536000, immutable"
        assert first.headers["cache-control"] == again.headers["cache-control"] == kept
        assert (await http.head(path)).headers["etag"] == first.headers["etag"]


async def test_nothing_else_is_served(http: httpx.AsyncClient):
    secret = {"authorization": "Bearer sk-known"}
    for path in (
        "/assets/source.sha256",
        "/assets/../index.html",
        "/assets/%2e%2e/index.html",
        "/assets/none.js",
    ):
        answer = await http.get(path, headers=secret)
        assert answer.status_code == 404
    assert (await http.post("/", headers=secret)).status_code == 405


def test_the_page_is_small():
    assert sum(len(file.bodies["gzip"]) for file in page_files().values()) <= BUDGET_BYTES


def test_no_file_names_another_host():
    text = "".join(file.bodies["identity"].decode() for file in page_files().values())
    hosts = set(re.findall(r"(?:https?:)?//([a-z0-9-]+(?:\.[a-z0-9-]+)+)", text))
    assert hosts <= {"www.w3.org"}  # names of namespaces


def test_the_bundle_is_of_this_source():
    """Tells without Node; `make page` builds it again."""
    files = ["index.html", "package.json", "tsconfig.json", "vite.config.ts"]
    files += [
        path.relative_to(SOURCE).as_posix() for path in SOURCE.joinpath("src").rglob("*") if path.is_file()
    ]
    digest = hashlib.sha256()
    for name in sorted(files):
        digest.update(f"{name}\0".encode() + SOURCE.joinpath(name).read_bytes() + b"\0")
    assert (FOLDER / "source.sha256").read_text().strip() == digest.hexdigest(), "make page"


def test_the_bundle_is_built_byte_for_byte(tmp_path: Path):
    """What `make page-check` does, where its packages are installed."""
    if not SOURCE.joinpath("node_modules/.bin/vite").exists() or shutil.which("node") is None:
        pytest.skip("the page's packages are not installed: make page")
    built = tmp_path / "bundle"
    subprocess.run(
        ["node_modules/.bin/vite", "build", "--outDir", str(built)],
        cwd=SOURCE, check=True, capture_output=True, timeout=100,
    )  # fmt: skip
    both = [
        {path.relative_to(root): path.read_bytes() for path in root.rglob("*") if path.is_file()}
        for root in (built, FOLDER)
    ]
    assert both[0] == both[1]
