"""Settings of the proxy: command line first, then `RHIZOME_PROXY_*` variables, then defaults."""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Annotated, Any, Final, Literal, Self

from pydantic import (
    Field,
    IPvAnyNetwork,
    NonNegativeInt,
    PositiveInt,
    ValidationError,
    field_validator,
    model_validator,
)
from pydantic_settings import BaseSettings, CliApp, CliSettingsSource, NoDecode, SettingsConfigDict

from rhizome_backends.open_server import check_spec
from rhizome_backends.spec import parse_specs, read_specs
from rhizome_proxy.pool.backend import LOAD_MAX_AGE_S, BackendRules
from rhizome_relay.settings import MIB, RelaySettings
from rhizome_routing.admission import AdmissionSettings, PriorityClass, RoomRules
from rhizome_routing.outlier import OutlierRules
from rhizome_routing.policies import POLICIES
from rhizome_telemetry.logs import LogFormat
from rhizome_transport.curve import ClientCurve
from rhizome_transport.endpoint import check_core_target
from rhizome_transport.tls import ClientTls, ServerTls
from rhizome_transport.tokens import Tokens, check_admin_host

PROGRAM = "rhizome-proxy"

_COMMON_NAMES: Final = {
    "backends": "BACKENDS",
    "max_allowed_request_queue": "MAX_ALLOWED_REQUEST_QUEUE",
    "max_allowed_deferred": "MAX_ALLOWED_DEFERRED",
    "poll_interval_s": "METRICS_CACHE_TTL_SECONDS",
    "backend_timeout_s": "BACKEND_TIMEOUT_SECONDS",
    "http_port": "PORT",
}


_HTTP_PORT: Final = 8888

_UNKNOWN_LIMIT: Final = 8192
"""Open requests at a backend that tells nothing of its load, such as another gateway."""


class ProxySettings(BaseSettings):
    """Balance requests over engines."""

    model_config = SettingsConfigDict(
        env_prefix="RHIZOME_PROXY_",
        env_ignore_empty=True,
        cli_kebab_case=True,
        cli_hide_none_type=True,
        cli_avoid_json=True,
        extra="forbid",
    )

    backends: str = Field(
        "",
        description="Comma-separated: host:port for our engines, ipc:///path for engine cores on this host, "
        "http://host:port for servers of any kind, dns:///name:port or dns+http://name:port for all "
        "addresses of a name; ?weight=2&priority=1&kind=vllm&alias=public:own as needed.",
    )
    backends_file: Path | None = Field(
        None, description="More of them, as YAML or JSON; read again when it changes."
    )
    host: str = Field("127.0.0.1", description="Address of the gRPC listener.")
    port: Annotated[int, Field(ge=0, le=65535)] = Field(50050, description="Its port; 0 takes a free one.")
    http_host: str = Field("127.0.0.1", description="Address of the HTTP listener.")
    http_port: Annotated[int, Field(ge=0, le=65535)] | None = Field(
        None, description="Its port; absent, it is 8888 if there are http:// backends, which it is for."
    )
    policy: str = Field("cost", description=f"How engines are chosen: {', '.join(POLICIES)}.")
    poll_interval_s: float = Field(
        0.25, gt=0, description="Least time between two checks of an engine; up to twice as long by chance."
    )
    poll_timeout_s: float = Field(1.0, gt=0, description="An engine answers a check within this time.")
    dns_interval_s: float = Field(5.0, gt=0, description="Time between two look-ups of a dns:/// name.")
    window_frames: PositiveInt = Field(
        64, description="Frames with events that an engine may send ahead of a reader, for each stream."
    )
    drain_timeout_s: float = Field(30.0, ge=0, description="Seconds open requests get after SIGTERM.")
    drain_delay_s: float = Field(
        0.0,
        ge=0,
        description="Seconds between SIGTERM and closed listeners, in which health already says no: for load "
        "balancers that ask for it.",
    )
    admin_host: str = Field("127.0.0.1", description="Address of the listener for operators.")
    admin_port: Annotated[int, Field(ge=0, le=65535)] = Field(
        0, description="Its port: all of ProxyService, to add, drain and remove engines; 0 switches it off."
    )
    engine_drain_timeout_s: float = Field(
        30.0, ge=0, description="Seconds until requests of an engine that DNS dropped go on at others."
    )
    stall_timeout_s: float = Field(
        10.0, gt=0, description="Requests of an engine that is silent for so long go on at others."
    )
    max_resumes: NonNegativeInt = Field(
        3, description="Engines that may be lost under a request that goes on at another each time."
    )
    resume_wait_s: float = Field(
        5.0, ge=0, description="Seconds such a request waits for an engine if none takes it at once."
    )
    retry_share: float = Field(
        0.2, ge=0, description="Refused requests that may try another engine, a share."
    )
    min_retries_per_s: float = Field(3.0, ge=0, description="So many may whatever the share.")
    max_in_flight: PositiveInt | None = Field(
        None, description="Requests that a backend of weight 1 gets at a time; found out where absent."
    )
    max_queued: NonNegativeInt = Field(
        4096, description="Requests of normal priority that wait here for a backend; 0 for no queue at all."
    )
    queue_timeout_s: float = Field(60.0, gt=0, description="Longest time that one of them waits.")
    eject_after: PositiveInt = Field(3, description="Failures in a row after which an engine gets nothing.")
    max_ejected: float = Field(0.5, ge=0, le=1, description="Largest share of engines that get nothing so.")
    slow_start_s: float = Field(
        10.0, ge=0, description="Seconds until an engine that came back gets its share."
    )
    max_allowed_request_queue: NonNegativeInt | None = Field(
        None, description="An engine that runs more requests is busy: others come first."
    )
    max_allowed_deferred: NonNegativeInt | None = Field(
        None, description="An engine in whose queue more requests wait is busy: others come first."
    )
    first_byte_timeout_s: float = Field(
        300.0, gt=0, description="Longest time until an HTTP backend begins to answer."
    )
    idle_timeout_s: float = Field(
        120.0, gt=0, description="Longest silence of an HTTP backend in the middle of an answer."
    )
    max_body_mib: PositiveInt = Field(64, description="Largest HTTP request, in MiB.")
    forward_credentials: bool = Field(
        False, description="HTTP backends get the clients' keys and cookies; otherwise only their own key."
    )
    trusted_proxies: Annotated[list[IPvAnyNetwork], NoDecode] = Field(
        [], description="Networks whose X-Forwarded-* headers are believed, such as 10.0.0.0/8."
    )
    backend_timeout_s: float | None = Field(
        None, gt=0, description="Longest time for a request; what its caller says where that is less."
    )
    metrics_port: Annotated[int, Field(ge=0, le=65535)] = Field(
        0, description="Port of a listener that has only /metrics; 0 switches it off."
    )
    metrics_host: str = Field("127.0.0.1", description="Address of that listener.")
    log_level: Literal["DEBUG", "INFO", "WARNING", "ERROR"] = Field(
        "INFO", description="Logging; SIGUSR1 makes it DEBUG while the proxy runs, SIGUSR2 this again."
    )
    log_format: LogFormat = Field("console", description="Lines for people, or json: one object a line.")
    tls_cert: Path | None = Field(
        None, description="PEM certificate of the gRPC listener, which speaks TLS then."
    )
    tls_key: Path | None = Field(None, description="Its private key.")
    tls_client_ca: Path | None = Field(
        None, description="PEM authority that clients must have a certificate from (mutual TLS)."
    )
    engine_tls_ca: Path | None = Field(
        None, description="PEM authority that engines are believed from; they are spoken to over TLS then."
    )
    engine_tls_cert: Path | None = Field(None, description="PEM certificate shown to engines (mutual TLS).")
    engine_tls_key: Path | None = Field(None, description="Its private key.")
    engine_tls_name: str = Field(
        "", description="Name in the engines' certificates; default: the address, behind dns:/// an IP."
    )
    token_file: Path | None = Field(
        None, description="Tokens, one a line: gRPC callers must show one of them; default: all may call."
    )
    engine_token_file: Path | None = Field(
        None, description="File whose first line is the token that engines want to be shown."
    )

    engine_curve_key: Path | None = Field(
        None, description="Our secret CURVE key, for engine cores at tcp:// (see `rhizome keys curve`)."
    )
    engine_curve_server: Path | None = Field(None, description="The public key that these cores have.")

    @model_validator(mode="before")
    @classmethod
    def _accept_common_names(cls, values: Any) -> Any:
        """Deployments of other proxies already set these."""
        if isinstance(values, dict):
            for field, name in _COMMON_NAMES.items():
                if field not in values and os.environ.get(name):
                    values[field] = os.environ[name]
        return values

    @field_validator("backends")
    @classmethod
    def _check_backends(cls, backends: str) -> str:
        for spec in parse_specs(backends):
            check_spec(spec)
        return backends

    @field_validator("trusted_proxies", mode="before")
    @classmethod
    def _split(cls, networks: Any) -> Any:
        """In the environment they stand as on the command line."""
        return networks.split(",") if isinstance(networks, str) else networks

    @field_validator("policy")
    @classmethod
    def _check_policy(cls, policy: str) -> str:
        if policy not in POLICIES:
            raise ValueError(f"policy {policy!r} is unknown; use one of {', '.join(POLICIES)}")
        return policy

    @model_validator(mode="after")
    def _check_together(self) -> Self:
        specs = parse_specs(self.backends)
        if self.backends_file is not None:
            try:
                specs += read_specs(self.backends_file)
            except OSError as error:
                raise ValueError(f"the backends file cannot be read: {error}") from None
            for spec in specs:
                check_spec(spec)
        elif not specs:
            raise ValueError(
                "no backends are given; use --backends host:port,http://host:port or --backends-file"
            )
        if self.http_port is None and any(spec.http for spec in specs):
            self.http_port = _HTTP_PORT
        tls, tokens = self.tls(), self.tokens()
        self.engine_tls()
        self.engine_tokens()
        curve = self.engine_curve()
        for spec in specs:
            if spec.core:
                check_core_target(spec.address, curve)
        if self.admin_port:
            guarded = tokens is not None or (tls is not None and tls.client_ca is not None)
            check_admin_host(self.admin_host, guarded=guarded)
        return self

    def admission(self) -> AdmissionSettings | None:
        """Bounds of the queue; `None` for no queue."""
        if not self.max_queued:
            return None
        classes = dict(AdmissionSettings().classes)
        classes[PriorityClass.NORMAL] = replace(
            classes[PriorityClass.NORMAL], max_waiting=self.max_queued, max_wait_s=self.queue_timeout_s
        )
        return AdmissionSettings(classes)

    def relay_settings(self) -> RelaySettings:
        """Limits and habits of the HTTP face."""
        total_s = float("inf") if self.backend_timeout_s is None else self.backend_timeout_s
        return RelaySettings(
            first_byte_timeout_s=self.first_byte_timeout_s,
            idle_timeout_s=self.idle_timeout_s,
            total_timeout_s=total_s,
            max_resumes=self.max_resumes,
            resume_wait_s=self.resume_wait_s,
            max_body_bytes=self.max_body_mib * MIB,
            forward_credentials=self.forward_credentials,
            trusted_proxies=tuple(self.trusted_proxies),
        )

    def backend_rules(self) -> BackendRules:
        """When an engine is busy or ejected, and how much it gets."""
        deferred = self.max_allowed_deferred
        return BackendRules(
            outlier=OutlierRules(self.eject_after, self.max_ejected, self.slow_start_s),
            room=RoomRules(
                self.max_in_flight,
                self.max_allowed_request_queue,
                queue_target=2 if deferred is None else min(2, deferred + 1),
                unknown_limit=_UNKNOWN_LIMIT,
            ),
            max_running=self.max_allowed_request_queue,
            max_waiting=self.max_allowed_deferred,
            load_max_age_s=max(LOAD_MAX_AGE_S, 3 * self.poll_interval_s),
        )

    def tls(self) -> ServerTls | None:
        """How the listener speaks TLS; None for plaintext."""
        return ServerTls.from_files(self.tls_cert, self.tls_key, self.tls_client_ca)

    def tokens(self) -> Tokens | None:
        """What gRPC callers must show; None for nothing."""
        return Tokens.from_file(self.token_file)

    def engine_tokens(self) -> Tokens | None:
        """What engines are shown; None for nothing."""
        return Tokens.from_file(self.engine_token_file)

    def engine_tls(self) -> ClientTls | None:
        """How engines are spoken to; None for plaintext."""
        return ClientTls.from_files(
            self.engine_tls_ca, self.engine_tls_cert, self.engine_tls_key, self.engine_tls_name
        )

    def engine_curve(self) -> ClientCurve | None:
        """How engine cores elsewhere are spoken to over ZeroMQ; None for only those on this host."""
        return ClientCurve.from_files(self.engine_curve_key, self.engine_curve_server)


def parse_settings(arguments: Sequence[str] | None = None) -> ProxySettings:
    """Read settings from command line and environment.

    Raises:
        SystemExit: an argument is wrong (status 2, each error on a line of its own) or help was asked for.
    """
    source: CliSettingsSource[ProxySettings] = CliSettingsSource(ProxySettings, cli_prog_name=PROGRAM)
    given = list(sys.argv[1:] if arguments is None else arguments)
    try:
        return CliApp.run(ProxySettings, cli_args=given, cli_settings_source=source)
    except ValidationError as error:
        for problem in error.errors():
            name = "--" + ".".join(str(part) for part in problem["loc"]).replace("_", "-")
            line = f"{name}: {problem['msg'].removeprefix('Value error, ')}".removeprefix("--: ")
            sys.stderr.write(f"{PROGRAM}: {line}\n")
        sys.stderr.write(f"{PROGRAM}: `{PROGRAM} --help` lists all settings.\n")
        raise SystemExit(2) from None
