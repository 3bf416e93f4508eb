"""What can be configured, from flags, then the environment, then defaults."""

from __future__ import annotations

import os
from collections.abc import Collection
from pathlib import Path
from typing import Annotated, Any

from pydantic import AfterValidator, BeforeValidator, Field
from pydantic.fields import FieldInfo
from pydantic_settings import BaseSettings, NoDecode, PydanticBaseSettingsSource, SettingsConfigDict

from rhizome_gateway.model_aliases import ModelAliases
from rhizome_gateway.parsing.detect import AUTO, NONE, RESPONSE_TEMPLATE
from rhizome_gateway.parsing.formats import REASONING_FORMATS, TOOL_FORMATS
from rhizome_telemetry.logs import LogFormat


def _comma_separated(value: Any) -> Any:
    return [part for part in value.split(",") if part] if isinstance(value, str) else value


def _parser_among(known: Collection[str]) -> AfterValidator:
    """Names of parsers are checked before any engine answers."""
    names = (AUTO, NONE, RESPONSE_TEMPLATE, *known)

    def check(name: str) -> str:
        if name.replace("-", "_") not in names:
            raise ValueError(f"it may be {', '.join(names)}")
        return name

    return AfterValidator(check)


def _aliases(entries: tuple[str, ...]) -> tuple[str, ...]:
    ModelAliases(entries)
    return entries


CommaSeparated = Annotated[tuple[str, ...], NoDecode, BeforeValidator(_comma_separated)]
"""A list that is given as one text, or as an option several times."""


class GatewaySettings(BaseSettings):
    """Settings of the gateway; each is a flag (`--max-body-bytes`) and a variable (`RHIZOME_GATEWAY_...`).

    `HOST` and `PORT` count as well, where the longer names are not set.
    """

    model_config = SettingsConfigDict(
        env_prefix="RHIZOME_GATEWAY_",
        env_ignore_empty=True,
        cli_prog_name="rhizome-gateway",
        cli_kebab_case=True,
        cli_implicit_flags=True,
        cli_hide_none_type=True,
        cli_avoid_json=True,
        extra="ignore",
    )

    host: str = Field("127.0.0.1", description="address to listen on")
    port: int = Field(8000, ge=0, le=65535, description="port to listen on; 0 takes a free one")
    workers: int = Field(1, ge=1, le=64, description="processes that serve the port together")
    listen_fd: int | None = Field(None, ge=0, description="an open listening socket; workers get one")
    shared_ledger: str = Field("", description="file with what keys have used; workers get one")
    engine_seen: str = Field(
        "", description="file that is there once one of the workers knows the model; workers get one"
    )
    engine: str = Field(
        "127.0.0.1:50050",
        description="proxy or engine: host:port for gRPC; ipc://PATH for an engine core on this host, "
        "tcp://HOST:PORT with keys for one elsewhere, several with commas",
    )
    log_level: str = Field(
        "INFO",
        description="DEBUG, INFO, WARNING or ERROR; SIGUSR1 makes it DEBUG at run time, SIGUSR2 this again",
    )
    log_format: LogFormat = Field("console", description="lines for people, or json: one object a line")
    log_prompts: bool = Field(False, description="log what requests say, prompts included; never by default")
    max_body_bytes: int = Field(4 * 1024 * 1024, ge=1, description="largest request body")
    max_header_bytes: int = Field(32 * 1024, ge=1024, description="request line and headers together")
    idle_timeout_s: int = Field(75, ge=1, description="time that a connection may wait for a next request")
    header_timeout_s: float = Field(10.0, gt=0, description="time a client has to send all headers")
    max_json_depth: int = Field(128, ge=1, le=512, description="how deep a request body may be nested")
    strict_params: bool = Field(False, description="refuse unknown parameters instead of ignoring them")
    body_timeout_s: float = Field(30.0, gt=0, description="time a client has to send its body")
    request_timeout_s: float | None = Field(
        None, gt=0, description="time a request may take in the engine, queueing included; none by default"
    )
    max_choices: int = Field(8, ge=1, le=128, description="largest n of a request")
    max_open_requests: int = Field(
        16_384, ge=1, description="requests that may be open in one process; more are refused with 503"
    )
    keep_alive_s: float = Field(15.0, gt=0, description="silence in a stream before a keep-alive comment")
    stalled_s: float = Field(60.0, gt=0, description="time after which a client that reads nothing is gone")
    model_refresh_s: float = Field(5.0, gt=0, description="how often the engine is asked what it serves")
    keys_file: Path | None = Field(
        None, description="TOML file with the keys that may come in, made by 'rhizome keys new'"
    )
    allow_open: bool = Field(False, description="without keys, listen on other addresses than loopback")
    allowed_hosts: CommaSeparated = Field(
        (), description="values of the Host header that are taken beside loopback's, where there are no keys"
    )
    cors_origins: CommaSeparated = Field((), description="web pages of these origins may use the API")
    engine_tls_ca: Path | None = Field(None, description="PEM certificates that engines are believed by")
    engine_tls_cert: Path | None = Field(None, description="the gateway's own certificate, for mutual TLS")
    engine_tls_key: Path | None = Field(None, description="its key")
    engine_tls_name: str = Field("", description="name in the engine's certificate; the target's if empty")
    engine_token_file: Path | None = Field(
        None, description="file whose first line is the token that the engine or proxy wants to be shown"
    )
    engine_curve_key: Path | None = Field(
        None, description="the gateway's secret CURVE key, for engine cores at tcp://"
    )
    engine_curve_server: Path | None = Field(None, description="the public key that these cores have")
    model_alias: Annotated[CommaSeparated, AfterValidator(_aliases)] = Field(
        (),
        description="NAME=TARGET, given for each: another name of a model; '*' takes any name",
    )
    tool_parser: Annotated[str, _parser_among(TOOL_FORMATS)] = Field(
        AUTO,
        description=f"how the model writes tool calls: {', '.join((AUTO, NONE, *TOOL_FORMATS))}",
    )
    reasoning_parser: Annotated[str, _parser_among(REASONING_FORMATS)] = Field(
        AUTO,
        description=f"how the model marks its thinking: {', '.join((AUTO, NONE, *REASONING_FORMATS))}",
    )
    metrics_port: int = Field(
        0, ge=0, le=65535, description="second listener that has only /metrics, without a key; 0 for none"
    )
    metrics_host: str = Field("127.0.0.1", description="address of that listener")
    metrics_tenants: int = Field(
        100,
        ge=0,
        le=10_000,
        description="tenants with numbers of their own; the others are counted as 'other'",
    )
    trace_url: str = Field(
        "", description="where the page links to a trace, such as http://127.0.0.1:16686/trace/{trace_id}"
    )
    drain_delay_s: float = Field(
        0.0, ge=0, description="time between /ready turning off and no new connections, after SIGTERM"
    )
    graceful_shutdown_s: int = Field(30, ge=0, description="time open requests have after SIGTERM")

    @classmethod
    def settings_customise_sources(
        cls,
        settings_cls: type[BaseSettings],
        init_settings: PydanticBaseSettingsSource,
        env_settings: PydanticBaseSettingsSource,
        dotenv_settings: PydanticBaseSettingsSource,
        file_secret_settings: PydanticBaseSettingsSource,
    ) -> tuple[PydanticBaseSettingsSource, ...]:
        """Add `HOST` and `PORT` below everything else."""
        return (init_settings, env_settings, _PlainVariables(settings_cls))


class _PlainVariables(PydanticBaseSettingsSource):
    """`HOST` and `PORT`, as many platforms set them."""

    def get_field_value(self, field: FieldInfo, field_name: str) -> tuple[Any, str, bool]:
        name = field_name.upper()
        return (os.environ.get(name) if name in ("HOST", "PORT") else None), field_name, False

    def __call__(self) -> dict[str, Any]:
        values = {name: os.environ.get(name.upper()) for name in ("host", "port")}
        return {name: value for name, value in values.items() if value}
