"""What is known of a backend before anybody asked it: one entry of `--backends` or of the backends file.

10.0.0.1:50051                                an engine of ours, gRPC
ipc:///run/rhizome/core.ipc                   an engine core of ours on this host, ZeroMQ
tcp://10.0.0.3:50052                          an engine core of ours elsewhere, ZeroMQ with CURVE keys
http://10.0.0.2:8000?kind=vllm&weight=2       any server with an HTTP API; its kind is found out where absent
dns:///engines:50051, dns+http://vllm:8000    every address of a name is a backend of its own
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Final
from urllib.parse import parse_qsl, urlsplit

import yaml

_SCHEMES: Final = {"http": 80, "https": 443, "dns+http": 80, "grpc": 0}
_CORE_SCHEMES: Final = ("ipc://", "tcp://")


@dataclass(frozen=True, slots=True)
class BackendSpec:
    """One backend, or, where `resolve` is set, all of a name.

    Attributes:
        address: `host:port` of an engine of ours, the ZeroMQ endpoint of a core of ours, else an HTTP URL
            without its query.
        name: unique in the pool; the address unless given.
        kind: such as `vllm`; empty to find out.
        weight: its share of requests beside others; positive.
        priority: its group; others of a lower number get requests first.
        key: sent as bearer token, to backends that speak HTTP.
        events: ZeroMQ address of its KV events, where it publishes them.
        aliases: names by which clients may ask for its models, and the models; `*` stands for every other.
        resolve: every address of the name is a backend of its own.
    """

    address: str
    name: str = ""
    kind: str = ""
    weight: float = 1.0
    priority: int = 0
    key: str = field(default="", repr=False)
    events: str = ""
    aliases: Mapping[str, str] = field(default_factory=dict, hash=False)
    resolve: bool = False

    def __post_init__(self) -> None:
        object.__setattr__(self, "name", self.name or self.address)

    @property
    def http(self) -> bool:
        """Whether it speaks HTTP rather than gRPC."""
        return self.address.startswith(("http://", "https://"))

    @property
    def core(self) -> bool:
        """Whether it is an engine core, which speaks ZeroMQ."""
        return self.address.startswith(_CORE_SCHEMES)

    @property
    def host(self) -> str:
        """Name or address, IPv6 without brackets."""
        return urlsplit(self._url).hostname or ""

    @property
    def port(self) -> int:
        """TCP port."""
        url = urlsplit(self._url)
        return url.port or _SCHEMES[url.scheme]

    def at(self, host: str) -> BackendSpec:
        """The backend at one address of the name."""
        bracketed = f"[{host}]" if ":" in host else host
        if self.http:
            url = urlsplit(self.address)
            address = url._replace(netloc=f"{bracketed}:{self.port}").geturl()
        else:
            address = f"{bracketed}:{self.port}"
        return replace(self, address=address, name=address, resolve=False)

    @property
    def _url(self) -> str:
        return self.address if self.http or self.core else f"grpc://{self.address}"


def parse_specs(text: str) -> tuple[BackendSpec, ...]:
    """Read a list such as `10.0.0.1:50051,http://10.0.0.2:8000?weight=2,dns:///engines:50051`.

    Raises:
        ValueError: an entry is malformed or named twice.
    """
    return _distinct([_parse_entry(entry) for part in text.split(",") if (entry := part.strip())])


def read_specs(path: Path) -> tuple[BackendSpec, ...]:
    """Read a YAML or JSON file: a list of addresses, or of mappings with the attributes of `BackendSpec`.

    `key_file` instead of `key` names a file that holds the key.

    Raises:
        ValueError: the file or an entry of it is malformed.
        OSError: the file cannot be read.
    """
    try:
        document = yaml.safe_load(path.read_text())
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise ValueError(f"{path} is no YAML: {error}") from None
    entries = document.get("backends") if isinstance(document, dict) else document
    if entries is None:
        entries = []
    if not isinstance(entries, list):
        raise ValueError(f"{path} must have a list of backends")
    return _distinct([_read_entry(entry, path.parent) for entry in entries])


def _parse_entry(entry: str) -> BackendSpec:
    address, _, query = entry.partition("?")
    options: dict[str, Any] = {}
    for name, value in parse_qsl(query, keep_blank_values=True):
        if name == "alias":
            public, colon, own = value.partition(":")
            if not colon:
                raise ValueError(f"alias={value!r} must be public-name:name-there")
            options.setdefault("aliases", {})[public] = own
        else:
            options[name] = value
    return _spec(address, options)


def _read_entry(entry: Any, directory: Path) -> BackendSpec:
    if isinstance(entry, str):
        return _parse_entry(entry)
    if not isinstance(entry, dict) or not isinstance(entry.get("address"), str):
        raise ValueError(f"{json.dumps(entry, default=str)[:200]} is no backend; it must have an address")
    options = {str(name): value for name, value in entry.items() if name != "address"}
    if "key_file" in options:
        options["key"] = (directory / str(options.pop("key_file"))).read_text().strip()
    return _spec(entry["address"], options)


def _spec(address: str, options: dict[str, Any]) -> BackendSpec:
    known = ("name", "kind", "weight", "priority", "key", "events", "aliases")
    unknown = sorted(set(options) - set(known))
    if unknown:
        raise ValueError(f"backends have no option {unknown[0]!r}; they have {', '.join(known)}")
    try:
        weight, priority = float(options.get("weight", 1)), int(options.get("priority", 0))
    except (TypeError, ValueError):
        raise ValueError(f"{address!r}: weight must be a number and priority a whole one") from None
    if not (0 < weight < math.inf):
        raise ValueError(f"{address!r}: weight must be positive")
    aliases = options.get("aliases", {})
    if not isinstance(aliases, dict):
        raise ValueError(f"{address!r}: aliases must map names of clients to names there")
    resolve, address = _resolvable(address)
    texts = {name: str(options.get(name, "")) for name in ("name", "kind", "key", "events")}
    if not all(text.isprintable() for text in texts.values()):
        raise ValueError(f"{address!r}: its options must not have line ends or other invisible characters")
    return BackendSpec(
        address,
        weight=weight,
        priority=priority,
        resolve=resolve,
        aliases={str(public): str(own) for public, own in aliases.items()},
        **texts,
    )


def _resolvable(entry: str) -> tuple[bool, str]:
    """Whether an entry stands for all addresses of its name, and the address without what says so."""
    wrong = ValueError(
        f"{entry!r} is no backend; write host:port, dns:///name:port, ipc:///path, http://host:port "
        "or dns+http://name:port, IPv6 in brackets"
    )
    if entry.startswith(_CORE_SCHEMES):
        return False, entry  # whether it is well formed is for whoever connects to say
    scheme, separator, rest = entry.partition("://")
    if not separator:
        scheme, rest = "grpc", entry
    resolve = scheme in ("dns", "dns+http")
    if scheme == "dns":  # the name follows a third slash, as in gRPC's own targets
        if not rest.startswith("/"):
            raise wrong
        scheme, rest = "grpc", rest[1:]
    scheme = scheme.removeprefix("dns+") if resolve else scheme
    if scheme not in _SCHEMES:
        raise wrong
    try:
        url = urlsplit(f"{scheme}://{rest}")
        host, port = url.hostname, url.port or _SCHEMES[scheme]
    except ValueError:
        raise wrong from None
    if not host or not port or url.username is not None or url.fragment:
        raise wrong
    if scheme == "grpc":
        if url.path:
            raise wrong
        return resolve, f"[{host}]:{port}" if ":" in host else f"{host}:{port}"
    return resolve, f"{scheme}://{url.netloc}{url.path.rstrip('/')}"


def _distinct(specs: list[BackendSpec]) -> tuple[BackendSpec, ...]:
    seen: set[tuple[str, bool]] = set()
    for spec in specs:
        if (spec.name, spec.resolve) in seen:
            raise ValueError(f"{spec.name!r} is named twice; name each backend once")
        seen.add((spec.name, spec.resolve))
    return tuple(specs)
