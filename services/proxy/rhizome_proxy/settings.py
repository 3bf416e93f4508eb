"""Settings of the proxy: command line first, then `RHIZOME_PROXY_*` variables, then defaults."""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any, Literal, Self

from pydantic import Field, PositiveInt, ValidationError, field_validator, model_validator
from pydantic_settings import BaseSettings, CliApp, CliSettingsSource, SettingsConfigDict

from rhizome_proxy.policies import POLICIES
from rhizome_proxy.pool.discovery import parse_targets
from rhizome_transport.tls import ClientTls, ServerTls

PROGRAM = "rhizome-proxy"


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
        description="Engines, comma-separated: host:port, or dns:///name:port for all addresses of a name.",
    )
    host: str = Field("127.0.0.1", description="Address of the gRPC listener.")
    port: Annotated[int, Field(ge=0, le=65535)] = Field(50050, description="Its port; 0 takes a free one.")
    policy: str = Field("least_loaded", description=f"How engines are chosen: {', '.join(POLICIES)}.")
    poll_interval_s: float = Field(
        0.25, gt=0, description="Least time between two checks of an engine; up to twice as long by chance."
    )
    poll_timeout_s: float = Field(1.0, gt=0, description="An engine answers a check within this time.")
    dns_interval_s: float = Field(5.0, gt=0, description="Time between two look-ups of a dns:/// name.")
    window_frames: PositiveInt = Field(
        64, description="Frames with events that an engine may send ahead of a reader, for each stream."
    )
    drain_timeout_s: float = Field(30.0, ge=0, description="Seconds open requests get after SIGTERM.")
    log_level: Literal["DEBUG", "INFO", "WARNING", "ERROR"] = Field("INFO", description="Logging.")
    tls_cert: Path | None = Field(None, description="PEM certificate of the listener, which speaks TLS then.")
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

    @model_validator(mode="before")
    @classmethod
    def _accept_common_names(cls, values: Any) -> Any:
        """`BACKENDS` is what deployments of other proxies already set."""
        if isinstance(values, dict) and "backends" not in values and os.environ.get("BACKENDS"):
            values["backends"] = os.environ["BACKENDS"]
        return values

    @field_validator("backends")
    @classmethod
    def _check_backends(cls, backends: str) -> str:
        parse_targets(backends)
        return backends

    @field_validator("policy")
    @classmethod
    def _check_policy(cls, policy: str) -> str:
        if policy not in POLICIES:
            raise ValueError(f"policy {policy!r} is unknown; use {' or '.join(POLICIES)}")
        return policy

    @model_validator(mode="after")
    def _check_together(self) -> Self:
        if not parse_targets(self.backends):
            raise ValueError(
                "no engines are given; use --backends host:port,host:port or --backends dns:///name:port"
            )
        self.tls()
        self.engine_tls()
        return self

    def tls(self) -> ServerTls | None:
        """How the listener speaks TLS; None for plaintext."""
        return ServerTls.from_files(self.tls_cert, self.tls_key, self.tls_client_ca)

    def engine_tls(self) -> ClientTls | None:
        """How engines are spoken to; None for plaintext."""
        return ClientTls.from_files(
            self.engine_tls_ca, self.engine_tls_cert, self.engine_tls_key, self.engine_tls_name
        )


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
