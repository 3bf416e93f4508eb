"""One trace and one id, where nginx stands before the gateway and makes up the id."""

from __future__ import annotations

import re
import secrets
import shutil
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest
from tests.deploy.observability.conftest import Watched

from rhizome_testing.otlp_sink import OtlpSink
from rhizome_testing.ports import free_port

_CONFIGURATION = """
daemon off; pid {folder}/pid; error_log {folder}/error.log;
events {{}}
http {{
  access_log off;
  client_body_temp_path {folder}/body; proxy_temp_path {folder}/proxy; fastcgi_temp_path {folder}/f;
  uwsgi_temp_path {folder}/u; scgi_temp_path {folder}/s;
  server {{
    listen 127.0.0.1:{port};
    location / {{
      proxy_pass {gateway}; proxy_http_version 1.1; proxy_buffering off;
      proxy_set_header X-Request-ID $request_id;
    }}
  }}
}}
"""


@pytest.fixture
def nginx(watched: Watched, tmp_path: Path) -> Iterator[str]:
    program = shutil.which("nginx")
    if program is None:
        pytest.skip("nginx is missing: install Debian's package nginx-light")
    port = free_port()
    file = tmp_path / "nginx.conf"
    file.write_text(_CONFIGURATION.format(folder=tmp_path, port=port, gateway=watched.stack.url))
    with subprocess.Popen(
        [program, "-c", str(file), "-p", str(tmp_path)], stderr=subprocess.DEVNULL
    ) as process:
        try:
            url, deadline = f"http://127.0.0.1:{port}", time.monotonic() + 30
            while not answers(watched, url):
                assert process.poll() is None and time.monotonic() < deadline
                time.sleep(0.02)
            yield url
        finally:
            process.terminate()


def answers(watched: Watched, url: str) -> bool:
    try:
        return watched.http.get(f"{url}/health").status_code == 200
    except httpx.TransportError:
        return False


def test_trace_and_id_go_from_nginx_to_the_engine(watched: Watched, spans: OtlpSink, nginx: str) -> None:
    trace_id = secrets.token_hex(16)
    headers = {
        "Authorization": f"Bearer {watched.keys['research']}",
        "Traceparent": f"00-{trace_id}-{secrets.token_hex(8)}-01",
        "Tracestate": "vendor=1",
    }
    body = {"model": "rhizome-demo", "messages": [{"role": "user", "content": "Hello"}], "stream": True}
    answer = watched.http.post(f"{nginx}/v1/chat/completions", json=body, headers=headers)
    assert answer.status_code == 200 and answer.text.rstrip().endswith("data: [DONE]")
    assert answer.headers["x-trace-id"] == trace_id
    assert re.fullmatch("[0-9a-f]{32}", answer.headers["x-request-id"]), "nginx's"
    whole = {"rhizome-gateway", "rhizome-proxy", "rhizome-engine"}
    spans.wait_for(
        lambda seen: {one.service for one in seen if one.kind == "SERVER"} >= whole, trace_id=trace_id
    )
    assert spans.edges(trace_id) == {
        ("rhizome-gateway", "rhizome-proxy"),
        ("rhizome-proxy", "rhizome-engine"),
    }
