"""What a stack consists of: which services, on which ports, with which options. Nothing is started here.

One model: engines, a proxy where there are several, a gateway. Several models: that for each of them, and a
router in front, which is a proxy that sends each request to the gateway of its model.
"""

from __future__ import annotations

import os
import tempfile
import uuid
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final, Literal

from rhizome_launcher.ports import PortChooser, PortError

PROXY_PORT = 50050
ENGINE_PORT = PROXY_PORT + 1
DRAIN_TIMEOUT_S = 10
STACK_MARK: Final = "RHIZOME_STACK"
"""Variable in the environment of every process of a stack, also of those that services start."""

Kind = Literal["router", "gateway", "proxy", "engine"]
LAYERS: Final[tuple[Kind, ...]] = ("router", "gateway", "proxy", "engine")
"""In the order in which requests arrive, which is the order in which services stop."""

_MODULES: Final[Mapping[Kind, str]] = {
    "router": "rhizome_proxy",
    "gateway": "rhizome_gateway",
    "proxy": "rhizome_proxy",
    "engine": "rhizome_engine",
}
_LOOPBACK: Final = "127.0.0.1"
_ANYWHERE: Final = {"0.0.0.0": _LOOPBACK, "::": "::1"}  # noqa: S104


class StackError(Exception):
    """A stack that cannot start, with the reason and what to do, for a person."""


@dataclass(frozen=True, slots=True)
class EngineGroup:
    """Engines that are alike.

    Attributes:
        model: checkpoint directory.
        count: how many.
        arguments: passed on to each.
        environment: added to the environment of each.
    """

    model: Path
    count: int = 1
    arguments: tuple[str, ...] = ()
    environment: Mapping[str, str] = field(default_factory=dict)

    @property
    def served_name(self) -> str:
        """Name of the model in the API."""
        for index, argument in enumerate(self.arguments):
            name, equals, value = argument.partition("=")
            if name == "--served-model-name":
                return value if equals else "".join(self.arguments[index + 1 : index + 2])
        return self.model.resolve().name


@dataclass(frozen=True, slots=True)
class StackSettings:
    """What to start.

    Attributes:
        model: checkpoint directory.
        engines: how many engines; a proxy joins from two on, or with `proxy`.
        groups: instead of `model` and `engines`, engines that differ.
        host: address that clients reach; everything else stays on loopback.
        port: its port.
        proxy: start a proxy even for one engine.
        direct: without a proxy, let the gateway talk to the engine's core over ZeroMQ, past its gRPC front.
        strict_port: refuse when `port` is taken, instead of taking the next free one.
        proxy_port: the proxy's port; the engines have those behind it. Where one is taken, the next free one.
        engine_arguments: passed on to every engine.
        proxy_arguments: passed on to the proxy.
        gateway_arguments: passed on to the gateway.
        environment: added to the environment of every service.
        log_dir: where each service's output goes.
        ready_timeout_s: how long to wait until everything serves, in seconds.
        drain_timeout_s: time for open answers when a service stops; shorter than what it is given to end,
            so that it says goodbye before it is killed.
        keep_cores: name each core's socket, so that a front that is started again finds it with its model.
    """

    model: Path = Path()
    engines: int = 1
    groups: tuple[EngineGroup, ...] = ()
    host: str = _LOOPBACK
    port: int = 8000
    proxy: bool = False
    direct: bool = True
    strict_port: bool = True
    proxy_port: int = PROXY_PORT
    engine_arguments: tuple[str, ...] = ()
    proxy_arguments: tuple[str, ...] = ()
    gateway_arguments: tuple[str, ...] = ()
    environment: Mapping[str, str] = field(default_factory=dict)
    log_dir: Path = Path(".run/logs")
    ready_timeout_s: float = 600.0
    drain_timeout_s: int = DRAIN_TIMEOUT_S
    keep_cores: bool = False

    def all_groups(self) -> tuple[EngineGroup, ...]:
        """The engines, whichever way they were given."""
        return self.groups or (EngineGroup(self.model, self.engines),)


@dataclass(frozen=True, slots=True)
class ServicePlan:
    """One process to start.

    Attributes:
        name: unique in the stack: `engine-0`, `gateway`.
        kind: its layer.
        arguments: of its command line.
        environment: added to its environment.
        address: `host:port` of an engine or a proxy, a URL of a gateway or a router.
    """

    name: str
    kind: Kind
    arguments: tuple[str, ...]
    environment: Mapping[str, str]
    address: str

    @property
    def module(self) -> str:
        """What `python -m` runs."""
        return _MODULES[self.kind]


@dataclass(frozen=True, slots=True)
class StackPlan:
    """Everything to start.

    Attributes:
        services: engines first.
        url: where clients reach it from this host.
        models: names in the API.
        sockets: private folder for ZeroMQ sockets, where there are some; made with the plan, removed by
            whoever stops the stack.
        mark: value of `STACK_MARK`.
    """

    services: tuple[ServicePlan, ...]
    url: str
    models: tuple[str, ...]
    sockets: Path | None
    mark: str

    def addresses(self, kind: Kind) -> list[str]:
        """Where the services of one kind are."""
        return [service.address for service in self.services if service.kind == kind]


def gateway_url(host: str, port: int) -> str:
    """The address as a browser on this host reaches it."""
    host = _ANYWHERE.get(host, host)
    return f"http://{f'[{host}]' if ':' in host else host}:{port}"


def make_plan(settings: StackSettings) -> StackPlan:
    """Choose ports and options for all services.

    Raises:
        StackError: the model is missing, a port is taken, or the settings do not fit together.
    """
    groups = settings.all_groups()
    _check(settings, groups)
    try:
        return _Planner(settings, groups).plan()
    except PortError as error:
        raise StackError(str(error)) from None


def _check(settings: StackSettings, groups: Sequence[EngineGroup]) -> None:
    for group in groups:
        if not (group.model / "config.json").is_file():
            raise StackError(
                f"{group.model} is no checkpoint: there is no config.json. Give --model a directory with "
                "config.json, tokenizer.json and *.safetensors, as downloaded from a model hub."
            )
        if group.count < 1:
            raise StackError(f"--engines must be at least 1, not {group.count}.")
    several = len({group.served_name for group in groups}) > 1
    if several and (settings.host not in (_LOOPBACK, "localhost", "::1") or _has_keys(settings)):
        raise StackError(
            "a stack of several models has no keys and serves this machine only; leave the host at "
            "127.0.0.1, or run one stack for each model."
        )


def _has_keys(settings: StackSettings) -> bool:
    return any(argument.startswith("--keys-file") for argument in settings.gateway_arguments)


class _Planner:
    def __init__(self, settings: StackSettings, groups: Sequence[EngineGroup]) -> None:
        self._settings = settings
        self._ports = PortChooser()
        self._by_model: dict[str, list[EngineGroup]] = {}
        for group in groups:
            self._by_model.setdefault(group.served_name, []).append(group)
        self._engines = sum(group.count for group in groups)
        self._mark = uuid.uuid4().hex
        self._services: list[ServicePlan] = []
        self._sockets: Path | None = None

    def plan(self) -> StackPlan:
        settings = self._settings
        port = self._ports.choose(settings.host, settings.port, strict=settings.strict_port)
        several = len(self._by_model) > 1
        try:
            if several:
                gateways = [self._serve_model(name, f"{name}.", None) for name in self._by_model]
                self._add_router(port, gateways)
            else:
                (name,) = self._by_model
                self._serve_model(name, "", port)
        except BaseException:
            if self._sockets is not None:
                self._sockets.rmdir()
            raise
        order = {kind: -number for number, kind in enumerate(LAYERS)}
        return StackPlan(
            services=tuple(sorted(self._services, key=lambda service: order[service.kind])),
            url=gateway_url(settings.host, port),
            models=tuple(self._by_model),
            sockets=self._sockets,
            mark=self._mark,
        )

    def _serve_model(self, model: str, prefix: str, port: int | None) -> str:
        """Plan the services of one model; the gateway's URL. Without `port` it is an inner one."""
        settings, groups = self._settings, self._by_model[model]
        first = settings.proxy_port + 1
        members = [group for group in groups for _ in range(group.count)]
        ports = [self._ports.choose(_LOOPBACK, first + index) for index in range(len(members))]
        alone = len(members) == 1 and not settings.proxy
        direct = alone and settings.direct
        target = f"{_LOOPBACK}:{ports[0]}"
        for index, (group, engine_port) in enumerate(zip(members, ports, strict=True)):
            name = f"{prefix}engine-{index}" if len(members) > 1 else f"{prefix}engine"
            endpoint = ""
            if (direct or settings.keep_cores) and not _names_core(group, settings):
                endpoint = self._new_endpoint()
            self._add_engine(name, group, engine_port, endpoint)
            if direct and endpoint:
                target = endpoint
        if not alone:
            target = self._add_proxy(prefix, [f"{_LOOPBACK}:{port}" for port in ports])
        host = settings.host if port is not None else _LOOPBACK
        if port is None:
            port = self._ports.choose(_LOOPBACK, settings.port + 1)
        arguments = ["--host", host, "--port", str(port), "--engine", target]
        arguments += ["--graceful-shutdown-s", str(settings.drain_timeout_s), *settings.gateway_arguments]
        self._add(f"{prefix}gateway", "gateway", arguments, gateway_url(host, port))
        return gateway_url(host, port)

    def _new_endpoint(self) -> str:
        if self._sockets is None:
            self._sockets = Path(tempfile.mkdtemp(prefix="rhizome-"))  # mode 0700: private to this user
        return f"ipc://{self._sockets}/{len(self._services)}.ipc"

    def _add_engine(self, name: str, group: EngineGroup, port: int, endpoint: str) -> None:
        settings = self._settings
        arguments = ["--model", str(group.model), "--port", str(port)]
        if endpoint:
            arguments += ["--core-endpoint", endpoint]
        environment = {
            "RHIZOME_ENGINE_NUM_THREADS": str(max(1, (os.cpu_count() or 1) // self._engines)),
            # Each measures what is free before the others have taken theirs.
            "RHIZOME_ENGINE_MEMORY_SHARE": str(round(1 / self._engines, 4)),
            **group.environment,
        }
        self._add(
            name,
            "engine",
            [*arguments, *settings.engine_arguments, *group.arguments],
            f"{_LOOPBACK}:{port}",
            environment,
        )

    def _add_proxy(self, prefix: str, backends: Sequence[str]) -> str:
        settings = self._settings
        port = self._ports.choose(_LOOPBACK, settings.proxy_port)
        arguments = ["--port", str(port), "--backends", ",".join(backends), *settings.proxy_arguments]
        address = f"{_LOOPBACK}:{port}"
        self._add(f"{prefix}proxy", "proxy", arguments, address)
        return address

    def _add_router(self, port: int, gateways: Sequence[str]) -> None:
        settings = self._settings
        arguments = ["--http-host", settings.host, "--http-port", str(port)]
        arguments += ["--port", str(self._ports.choose(_LOOPBACK, settings.proxy_port))]
        arguments += ["--backends", ",".join(gateways), *settings.proxy_arguments]
        self._add("router", "router", arguments, gateway_url(settings.host, port))

    def _add(
        self,
        name: str,
        kind: Kind,
        arguments: Sequence[str],
        address: str,
        environment: Mapping[str, str] | None = None,
    ) -> None:
        drain = str(self._settings.drain_timeout_s)
        own = {"RHIZOME_ENGINE_DRAIN_TIMEOUT_S": drain, "RHIZOME_PROXY_DRAIN_TIMEOUT_S": drain}
        own |= {**(environment or {}), **self._settings.environment, STACK_MARK: self._mark}
        self._services.append(ServicePlan(name, kind, tuple(arguments), own, address))


def _names_core(group: EngineGroup, settings: StackSettings) -> bool:
    arguments = (*settings.engine_arguments, *group.arguments)
    return any(argument.startswith("--core-endpoint") for argument in arguments)
