"""Settings of the engine: command line first, then `RHIZOME_ENGINE_*` variables, then defaults.

`CoreSettings` is what the process with the model needs; `EngineSettings` adds what its front needs. The front
hands the core's part on as command-line arguments (`core_arguments`), so both read the same names.
"""

from __future__ import annotations

import math
import os
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any, Literal, Self, TypeVar

from pydantic import Field, NonNegativeInt, PositiveInt, field_validator, model_validator
from pydantic_settings import BaseSettings, CliApp, CliSettingsSource, SettingsConfigDict

from rhizome_engine.compat.kv_endpoint import KvEventSettings
from rhizome_engine.memory_size import MemorySize
from rhizome_engine.scheduler.config import PolicyName
from rhizome_telemetry.logs import LogFormat
from rhizome_transport.curve import ServerCurve
from rhizome_transport.endpoint import check_served
from rhizome_transport.tls import ServerTls
from rhizome_transport.tokens import Tokens, check_admin_host

MAX_IPC_PATH_BYTES = 100
"""Unix socket paths hold 107 bytes; ZeroMQ and the lock file beside the socket need a few of them."""

FloatType = Literal["auto", "float32", "bfloat16", "float16"]
SettingsT = TypeVar("SettingsT", bound="CoreSettings")
EXIT_FAILED = 1
"""Exit status after a crash, a taken port, or requests that were cut off: the next start may go well."""
EXIT_CANNOT_SERVE = 2
"""Exit status of what would fail again in the same way: starting it once more is useless."""
EXIT_DEVICE_LOST = 3
"""Exit status of a core whose device computes nothing more for this process."""
EXIT_RANK_LOST = 4
"""Exit status of a core of several ranks one of which ended, failed or got stuck."""
EXIT_INTERRUPTED = 130
"""Exit status after a second Ctrl-C, which does not wait."""

PAGE_SIZES = (1, 16, 32, 64, 128, 256)


class CoreSettings(BaseSettings):
    """What the process that owns the model needs."""

    model_config = SettingsConfigDict(
        env_prefix="RHIZOME_ENGINE_",
        env_ignore_empty=True,
        cli_kebab_case=True,
        cli_hide_none_type=True,
        cli_avoid_json=True,
        extra="forbid",
        protected_namespaces=(),
    )

    model: Path = Field(description="Checkpoint directory: config.json, tokenizer.json, *.safetensors.")
    served_model_name: str = Field("", description="Name in the API; default: the directory's name.")
    device: str = Field("auto", description="auto, cpu, cuda or cuda:N.")
    dtype: FloatType = Field("auto", description="Type of weights that are not quantised.")
    quantization: Literal["none", "int8", "fp8", "int4"] = Field(
        "none", description="Round weights to few bits while loading; none keeps what the checkpoint has."
    )
    kernels: Literal["auto", "native", "triton", "torch"] = Field(
        "auto",
        description="What computes: native on a CPU, triton on a GPU, or PyTorch; auto: torch only where its "
        "device's own cannot run.",
    )
    attention: Literal["auto", "native", "flash_attn", "triton", "sdpa"] = Field(
        "auto", description="Back end; auto: the fastest that can run, and the log says why."
    )
    graphs: Literal["auto", "off"] = Field(
        "auto",
        description="Record steps on a GPU and replay them, one launch each; off launches every kernel.",
    )
    tensor_parallel: int = Field(
        1, ge=1, le=64, description="Devices that compute the model together, each a part of every layer."
    )
    tensor_parallel_timeout_s: float = Field(
        60.0,
        gt=0,
        description="Seconds without a layer after which they are taken to be stuck; the core ends.",
    )
    page_size: int = Field(16, description=f"Tokens per page of the KV pool: {PAGE_SIZES}.")
    max_cache_tokens: PositiveInt | None = Field(
        None, description="Tokens in the KV pool; default: what --kv-memory or the free memory allows."
    )
    kv_memory: str | None = Field(
        None,
        description="Memory of the KV pool, such as 4GiB, or 60% of what is left beside weights and "
        "workspace; default: measured.",
    )
    kv_host_memory: str | None = Field(
        None, description="Memory of the host for prefixes that leave the pool, such as 8GiB; default: none."
    )
    kv_cache_dtype: FloatType = Field(
        "auto", description="Type of the KV pool; auto: float32 on a CPU, bfloat16 beside quantised weights."
    )
    memory_share: float = Field(
        1.0,
        gt=0,
        le=1,
        description="Part of the free memory that this engine may count on, where several share a machine.",
    )
    max_batch_size: PositiveInt = Field(32, description="Requests computed in one step.")
    max_queue_size: PositiveInt = Field(256, description="Requests that may wait; more are refused.")
    max_concurrent_requests: PositiveInt | None = Field(
        None,
        description="Requests that hold KV pages at once, and take turns where a batch has fewer rows; "
        "default: --max-batch-size.",
    )
    max_step_tokens: PositiveInt = Field(512, description="Tokens computed in one step.")
    max_chunk_tokens: PositiveInt | None = Field(
        None, description="Prompt tokens of one request in one step; default: its fair share of the step."
    )
    max_partial_prefills: PositiveInt = Field(
        4, description="Prompts computed at the same time; they share a step's tokens."
    )
    max_context_tokens: PositiveInt | None = Field(
        None, description="Most tokens of prompt and output together; default: the checkpoint's."
    )
    policy: PolicyName = Field(
        "fcfs",
        description="Who starts next among the requests of one tenant: fcfs the first one, lpm the one with "
        "the longest cached prefix, priority the one with the highest priority.",
    )
    lpm_max_wait_s: float = Field(
        2.0, ge=0, description="Under --policy lpm, who has waited for so many seconds goes first."
    )
    fairness: bool = Field(
        True, description="Among tenants, who was served least starts next; false is one queue for all."
    )
    max_tenant_slowdown: float = Field(
        1.2,
        description="With --fairness, most that tenants with many running requests may slow down a step of "
        "one with few, as a factor; 0 for any.",
    )
    eviction_policy: str = Field(
        "lru", description="Which cached prefix makes room: lru, lfu, fifo, or module:Class of your own."
    )
    max_pinned_tokens: NonNegativeInt | None = Field(
        None,
        description="Tokens that pinned prefixes may keep from eviction; default: a quarter of all.",
    )
    schedule_interval_ms: float = Field(
        0.0,
        ge=0,
        le=1000,
        description="An idle engine waits this long before its first step, so that requests that come "
        "together are computed together.",
    )
    overlap: Literal["auto", "on", "off"] = Field(
        "auto", description="Launch a step before the one before was read; auto: where steps run on a GPU."
    )
    grammar_workers: PositiveInt = Field(2, description="Grammars that are compiled at the same time.")
    grammar_timeout_s: float = Field(
        10.0, gt=0, description="Seconds a grammar may take to compile; a request whose takes longer fails."
    )
    grammar_cache_size: PositiveInt = Field(128, description="Compiled grammars that are kept.")
    num_threads: int = Field(0, ge=0, description="CPU threads of the model; 0 lets torch choose.")
    core_endpoint: str = Field(
        "",
        description="ipc:///path of the core's socket; default: in a private temporary directory. "
        "tcp://host:port here means --core-tcp-endpoint.",
    )
    core_tcp_endpoint: str = Field(
        "",
        description="tcp://host:port, where gateways and proxies of other hosts reach the core; needs both "
        "--core-curve settings.",
    )
    core_curve_key: Path | None = Field(
        None, description="The core's secret CURVE key, for that (see `rhizome keys curve`)."
    )
    core_curve_clients: Path | None = Field(
        None, description="The public keys that may connect there; read again when it changes."
    )
    orphan_grace_s: float | None = Field(
        None, ge=0, description="Seconds a core without a front stays; default: for ever, under a front 10."
    )
    log_level: Literal["DEBUG", "INFO", "WARNING", "ERROR"] = Field(
        "INFO", description="Logging; SIGUSR1 makes it DEBUG while the engine runs, SIGUSR2 this again."
    )
    log_format: LogFormat = Field("console", description="Lines for people, or json: one object a line.")
    trace_steps: bool = Field(
        False, description="Trace steps too, each with links to its sampled requests, 32 at most."
    )

    @model_validator(mode="before")
    @classmethod
    def _accept_common_names(cls, values: Any) -> Any:
        """`MODEL_PATH` and `DEVICE` are what deployments of other engines already set."""
        if isinstance(values, dict):
            for field, variable in (("model", "MODEL_PATH"), ("device", "DEVICE")):
                if field not in values and os.environ.get(variable):
                    values[field] = os.environ[variable]
        return values

    @field_validator("model")
    @classmethod
    def _check_model(cls, path: Path) -> Path:
        if not (path / "config.json").is_file():
            raise ValueError(
                f"{path} is no checkpoint: there is no config.json. Give a directory with config.json, "
                "tokenizer.json and *.safetensors, as downloaded from a model hub."
            )
        return path.resolve()

    @field_validator("device")
    @classmethod
    def _check_device(cls, device: str) -> str:
        kind, _, index = device.partition(":")
        if kind not in ("auto", "cpu", "cuda") or (index and not (kind == "cuda" and index.isdecimal())):
            raise ValueError(f"device must be auto, cpu, cuda or cuda:N, not {device!r}")
        return device

    @field_validator("page_size")
    @classmethod
    def _check_page_size(cls, page_size: int) -> int:
        if page_size not in PAGE_SIZES:
            raise ValueError(f"page size must be one of {PAGE_SIZES}, not {page_size}")
        return page_size

    @field_validator("kv_memory", "kv_host_memory")
    @classmethod
    def _check_kv_memory(cls, size: str | None) -> str | None:
        if size is not None:
            MemorySize.parse(size)
        return size

    @field_validator("max_tenant_slowdown")
    @classmethod
    def _check_slowdown(cls, factor: float) -> float:
        if factor != 0 and not 1 <= factor < math.inf:
            raise ValueError(f"a slowdown is a factor of at least 1, or 0 for any, not {factor}")
        return factor

    @field_validator("core_endpoint")
    @classmethod
    def _check_endpoint(cls, endpoint: str) -> str:
        if endpoint and not endpoint.startswith("ipc:///"):
            raise ValueError(
                f"the core listens on an absolute ipc path such as ipc:///run/x/core.ipc, not {endpoint!r}"
            )
        if len(os.fsencode(endpoint.removeprefix("ipc://"))) > MAX_IPC_PATH_BYTES:
            raise ValueError(
                f"{endpoint} is longer than the {MAX_IPC_PATH_BYTES} bytes a socket path may have"
            )
        return endpoint

    @model_validator(mode="before")
    @classmethod
    def _take_tcp(cls, values: Any) -> Any:
        """The front always needs ipc, so `--core-endpoint tcp://...` can only mean the other one."""
        if isinstance(values, dict) and str(values.get("core_endpoint", "")).startswith("tcp://"):
            if values.get("core_tcp_endpoint"):
                raise ValueError("give the core one tcp:// endpoint, by --core-tcp-endpoint")
            values = values | {"core_endpoint": "", "core_tcp_endpoint": values["core_endpoint"]}
        return values

    def core_curve(self) -> ServerCurve | None:
        """Who may reach the core over TCP; None for nobody."""
        return ServerCurve.from_files(self.core_curve_key, self.core_curve_clients)

    @model_validator(mode="after")
    def _check_together(self) -> Self:
        curve = self.core_curve()
        if self.core_tcp_endpoint:
            check_served(self.core_tcp_endpoint, curve)
        if not self.served_model_name:
            self.served_model_name = self.model.name
        if self.max_cache_tokens is not None and self.kv_memory is not None:
            raise ValueError("give --max-cache-tokens or --kv-memory, not both")
        return self


class EngineSettings(CoreSettings):
    """What the front and its core need."""

    host: str = Field("127.0.0.1", description="Address of the gRPC listener.")
    port: Annotated[int, Field(ge=0, le=65535)] = Field(50051, description="Its port; 0 takes a free one.")
    admin_host: str = Field("127.0.0.1", description="Address of EngineAdminService.")
    admin_port: Annotated[int, Field(ge=0, le=65535)] = Field(0, description="Its port; 0 switches it off.")
    metrics_port: Annotated[int, Field(ge=0, le=65535)] = Field(
        0, description="Port of /metrics for Prometheus; 0 switches it off."
    )
    metrics_host: str = Field("127.0.0.1", description="Address of /metrics.")
    metrics_vllm_names: bool = Field(
        False, description="Serve /metrics under vLLM's names as well, for dashboards that know those."
    )
    drain_timeout_s: float = Field(30.0, ge=0, description="Seconds open requests get after SIGTERM.")
    load_timeout_s: float = Field(1800.0, gt=0, description="Seconds the core may take to load the model.")
    wedge_timeout_s: float = Field(
        120.0,
        ge=0,
        description="Seconds without progress after which a core that lives is killed and started again; 0 "
        "for never.",
    )
    tls_cert: Path | None = Field(
        None,
        description="PEM certificate of the gRPC listener, which speaks TLS then; the admin one only where "
        "--admin-host is not loopback.",
    )
    tls_key: Path | None = Field(None, description="Its private key.")
    tls_client_ca: Path | None = Field(
        None, description="PEM authority that clients must have a certificate from (mutual TLS)."
    )
    token_file: Path | None = Field(
        None, description="Tokens, one a line: gRPC callers must show one of them; default: all may call."
    )

    vllm_grpc: Literal["auto", "on", "off"] = Field(
        "auto",
        description="Speak vLLM's gRPC contract as well, for other people's routers; auto: where the package "
        "smg-grpc-proto is installed.",
    )
    kv_events_endpoint: str = Field(
        "", description="Publish KV events as vLLM does: tcp://127.0.0.1:5557, tcp://*:5557 or ipc:///path."
    )
    kv_events_replay_endpoint: str = Field("", description="Where a reader asks for those that it missed.")
    kv_events_connect: bool = Field(
        False, description="Connect to --kv-events-endpoint, which a reader has bound, rather than bind it."
    )
    kv_events_topic: str = Field("", description="Their topic; readers may want kv@HOST:PORT@MODEL.")
    kv_events_format: Literal["lists", "maps"] = Field(
        "lists", description="How an event is written: lists, which most readers know, or vLLM's newer maps."
    )
    expose_token_ids: bool = Field(
        False,
        description="KV events, which hold the token ids of prompts, may leave this host; only for networks "
        "where everybody may read everybody's prompts.",
    )

    @model_validator(mode="after")
    def _check_access(self) -> Self:
        self.kv_events()
        tls, tokens = self.tls(), self.tokens()
        if self.admin_port:
            guarded = tokens is not None or (tls is not None and tls.client_ca is not None)
            check_admin_host(self.admin_host, guarded=guarded)
        return self

    def tls(self) -> ServerTls | None:
        """How the gRPC listener speaks TLS; None for plaintext."""
        return ServerTls.from_files(self.tls_cert, self.tls_key, self.tls_client_ca)

    def kv_events(self) -> KvEventSettings | None:
        """Where KV events are published; None for nowhere."""
        return KvEventSettings.from_options(
            self.kv_events_endpoint,
            replay_endpoint=self.kv_events_replay_endpoint,
            connect=self.kv_events_connect,
            topic=self.kv_events_topic,
            form=self.kv_events_format,
            may_leave_host=self.expose_token_ids,
        )

    def tokens(self) -> Tokens | None:
        """What gRPC callers must show; None for nothing."""
        return Tokens.from_file(self.token_file)


def parse_settings(kind: type[SettingsT], arguments: Sequence[str] | None, *, program: str) -> SettingsT:
    """Read settings from command line and environment.

    Raises:
        SystemExit: an argument is wrong (status 2, each error on a line of its own) or help was asked for.
    """
    from pydantic import ValidationError

    source: CliSettingsSource[SettingsT] = CliSettingsSource(kind, cli_prog_name=program)
    given = list(sys.argv[1:] if arguments is None else arguments)
    try:
        return CliApp.run(kind, cli_args=given, cli_settings_source=source)
    except ValidationError as error:
        lines = []
        for problem in error.errors():
            name = "--" + ".".join(str(part) for part in problem["loc"]).replace("_", "-")
            lines.append(f"{name}: {problem['msg'].removeprefix('Value error, ')}".removeprefix("--: "))
        raise SystemExit(_usage_error(program, lines)) from None


def core_arguments(settings: CoreSettings) -> list[str]:
    """The core's part of `settings` as command-line arguments."""
    arguments: list[str] = []
    for name in CoreSettings.model_fields:
        value = getattr(settings, name)
        if value is not None:
            arguments += [f"--{name.replace('_', '-')}", str(int(value) if isinstance(value, int) else value)]
    return arguments


def _usage_error(program: str, lines: Sequence[str]) -> int:
    for line in lines:
        sys.stderr.write(f"{program}: {line}\n")
    sys.stderr.write(f"{program}: `{program} --help` lists all settings.\n")
    return 2
