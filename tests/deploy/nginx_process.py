"""The nginx of `deploy/nginx`, run as a container would run it but for folders and ports."""

from __future__ import annotations

import os
import shutil
from collections.abc import Mapping
from pathlib import Path

from rhizome_testing.certificates import Authority, Certificate
from rhizome_testing.ports import free_ports
from rhizome_testing.processes import ProcessFixture

NGINX = Path(__file__).resolve().parents[2] / "deploy" / "nginx"
TARGETS = ("gateway", "proxy", "http_proxy")


class NginxProcess(ProcessFixture):
    """nginx before a gateway, a proxy and a proxy's HTTP face, each on loopback.

    Args:
        folder: for configuration, certificates and log.
        targets: ports of what is behind it, by the names in `TARGETS`; what is absent cannot be reached.

    Attributes:
        tls_port: of the API.
        grpc_port: of gRPC.
        http_port: of the HTTP face.
        authority: who signed its certificate, and whose clients may speak gRPC.
        client: a certificate of such a client.
    """

    def __init__(self, folder: Path, targets: Mapping[str, int]) -> None:
        self.tls_port, self.grpc_port, self.http_port = free_ports(3)
        self.authority = install(folder)
        self.client = self.authority.issue("client", "DNS:client")
        listen(folder, {8443: self.tls_port, 50443: self.grpc_port, 8080: self.http_port})
        aim(folder, targets)
        user = "user root; " if os.geteuid() == 0 else ""  # its workers could not enter pytest's folders else
        command = ["nginx", "-p", str(folder), "-c", str(folder / "nginx.conf"), "-g", f"{user}daemon off;"]
        super().__init__(command, log=folder / "nginx.log", name="nginx")
        try:
            for port in (self.tls_port, self.grpc_port, self.http_port):
                self.wait_for_port(port)
        except BaseException:
            self.terminate()
            raise

    @property
    def url(self) -> str:
        """Where the API is."""
        return f"https://127.0.0.1:{self.tls_port}"


def install(folder: Path) -> Authority:
    """Lay the configuration out as containers mount it; certificates included, everything else untouched."""
    (folder / "tls").mkdir(parents=True)
    shutil.copytree(NGINX, folder / "rhizome")
    shutil.copytree(NGINX / "servers", folder / "servers")
    shutil.copy(NGINX / "nginx.conf", folder)
    authority = Authority(folder)
    shown: Certificate = authority.issue("server")
    shutil.copy(shown.cert, folder / "tls" / "server.pem")
    shutil.copy(shown.key, folder / "tls" / "server.key")
    shutil.copy(authority.ca, folder / "tls" / "clients.pem")
    substitute(folder / "nginx.conf", {"/tmp/": f"{folder}/"})
    return authority


def listen(folder: Path, ports: Mapping[int, int]) -> None:
    """Let the servers listen on other ports, on loopback only."""
    for path in sorted((folder / "servers").iterdir()):
        own = {f"listen {old}": f"listen 127.0.0.1:{new}" for old, new in ports.items()}
        substitute(path, {old: new for old, new in own.items() if old in path.read_text()})


def aim(folder: Path, targets: Mapping[str, int]) -> None:
    """Point the upstreams at ports of loopback; port 9 for those that nobody serves."""
    usual = dict(zip(TARGETS, (8000, 50050, 8888), strict=True))
    substitute(
        folder / "rhizome" / "targets.conf",
        {f"127.0.0.1:{usual[name]} ": f"127.0.0.1:{targets.get(name, 9)} " for name in TARGETS},
    )


def substitute(path: Path, texts: Mapping[str, str]) -> None:
    """Replace texts in a file; each must be there."""
    content = path.read_text()
    for old, new in texts.items():
        assert old in content, f"{path.name} has no {old!r} any more"
        content = content.replace(old, new)
    path.write_text(content)
