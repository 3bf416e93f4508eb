"""What can be configured, from flags, then the environment, then defaults."""

from __future__ import annotations

import os
from typing import Any

from pydantic import Field
from pydantic.fields import FieldInfo
from pydantic_settings import BaseSettings, PydanticBaseSettingsSource, SettingsConfigDict


class GatewaySettings(BaseSettings):
    """Settings of the gateway; each is a flag (`--max-body-bytes`) and a variable (`RHIZOME_GATEWAY_...`).

    `HOST` and `PORT` count as well, where the longer names are not set.
    """

    model_config = SettingsConfigDict(
        env_prefix="RHIZOME_GATEWAY_",
        cli_prog_name="rhizome-gateway",
        cli_kebab_case=True,
        cli_implicit_flags=True,
        cli_hide_none_type=True,
        cli_avoid_json=True,
        extra="ignore",
    )

    host: str = Field("127.0.0.1", description="address to listen on")
    port: int = Field(8000, ge=0, le=65535, description="port to listen on; 0 takes a free one")
    engine: str = Field(
        "127.0.0.1:50050",
        description="proxy or engine: host:port for gRPC, ipc://PATH for an engine core on this host",
    )
    log_level: str = Field("INFO", description="DEBUG, INFO, WARNING or ERROR")
    max_body_bytes: int = Field(4 * 1024 * 1024, ge=1, description="largest request body")
    max_header_bytes: int = Field(32 * 1024, ge=1024, description="request line and headers together")
    body_timeout_s: float = Field(30.0, gt=0, description="time a client has to send its body")
    request_timeout_s: float | None = Field(
        None, gt=0, description="time a request may take in the engine, queueing included; none by default"
    )
    max_choices: int = Field(8, ge=1, le=128, description="largest n of a request")
    keep_alive_s: float = Field(15.0, gt=0, description="silence in a stream before a keep-alive comment")
    model_refresh_s: float = Field(5.0, gt=0, description="how often the engine is asked what it serves")
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
