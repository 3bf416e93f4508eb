"""`rhizome status`: every service of a background stack, as it says of itself and as the kernel sees it."""

from __future__ import annotations

import asyncio
import contextlib
import time
from dataclasses import asdict, dataclass
from typing import Any, Final

import psutil
from rich.markup import escape
from rich.table import Table

from rhizome_launcher.background.state_dir import ServiceRecord, StateDir
from rhizome_launcher.plan import ServicePlan
from rhizome_launcher.readiness import Health, check
from rhizome_transport.process_start import seconds_since

EXIT_HEALTHY: Final = 0
EXIT_DEGRADED: Final = 1
EXIT_NOT_RUNNING: Final = 3
TABLE_WIDTH: Final = 132
_MIB: Final = 1 << 20
_CPU_SAMPLE_S: Final = 0.2
_ANSWER_S: Final = 3.0


@dataclass(frozen=True, slots=True)
class ServiceStatus:
    """One service.

    Attributes:
        name: in the stack.
        kind: its layer.
        state: what the supervisor says: starting, running, waiting, failed, stopping, stopped; `ended` when
            its process is gone and there is no supervisor to notice.
        pid: of its process, 0 without one.
        uptime_s: of that process, in seconds.
        restarts: how often it was started again because it had ended by itself.
        last_exit_code: of the process before; null when none ended.
        next_start_s: seconds until a waiting one is started again.
        address: where it listens.
        serving: whether it takes requests.
        health: the same for people.
        cpu: processors that it and its children use, such as 0.5.
        rss_bytes: memory of all of these.
        processes: how many they are.
        running_requests: of an engine.
        waiting_requests: of an engine.
        kv_use: share of an engine's KV pages that requests hold.
    """

    name: str
    kind: str
    state: str
    pid: int
    uptime_s: float
    restarts: int
    last_exit_code: int | None
    next_start_s: float
    address: str
    serving: bool
    health: str
    cpu: float
    rss_bytes: int
    processes: int
    running_requests: int | None = None
    waiting_requests: int | None = None
    kv_use: float | None = None


@dataclass(frozen=True, slots=True)
class StackStatus:
    """All of them.

    Attributes:
        supervisor_pid: 0 when it is gone.
        url: where clients reach the stack.
        models: names in the API.
        services: engines first.
    """

    supervisor_pid: int
    url: str
    models: tuple[str, ...]
    services: tuple[ServiceStatus, ...]

    @property
    def exit_code(self) -> int:
        """0 when everything serves, 3 when nothing runs, else 1."""
        if not self.supervisor_pid and not any(service.pid for service in self.services):
            return EXIT_NOT_RUNNING
        healthy = self.supervisor_pid and all(service.serving for service in self.services)
        return EXIT_HEALTHY if healthy else EXIT_DEGRADED

    def as_dict(self) -> dict[str, Any]:
        """For `--json`."""
        words = {EXIT_HEALTHY: "healthy", EXIT_DEGRADED: "degraded", EXIT_NOT_RUNNING: "not running"}
        return {"status": words[self.exit_code], **asdict(self)}


async def look(folder: StateDir) -> StackStatus:
    """Ask everybody once; takes a moment, in which the use of processors is measured."""
    saved = folder.read_plan()
    if saved is None:
        return StackStatus(0, "", (), ())
    state = folder.read_state()
    supervised = await asyncio.to_thread(folder.is_supervised)
    services = await asyncio.gather(
        *(
            _look_at(service, state.services.get(service.name, ServiceRecord()), supervised)
            for service in saved.stack.services
        )
    )
    pid = state.supervisor_pid if supervised else 0
    return StackStatus(pid, saved.stack.url, saved.stack.models, tuple(services))


async def _look_at(plan: ServicePlan, record: ServiceRecord, supervised: bool) -> ServiceStatus:
    process = record.process()
    if process is None:
        health, used = Health(False, "down"), _Used()
    else:
        health, used = await asyncio.gather(check(plan, _ANSWER_S), _measure(process))
    state = "ended" if record.state == "running" and process is None and not supervised else record.state
    load, now = health.load, time.time()
    return ServiceStatus(
        name=plan.name,
        kind=plan.kind,
        state=state,
        pid=record.pid if process is not None else 0,
        uptime_s=round(seconds_since(record.started), 1) if process is not None else 0.0,
        restarts=record.restarts,
        last_exit_code=record.last_exit_code,
        next_start_s=round(max(0.0, record.next_start - now), 1),
        address=plan.address,
        serving=health.serving,
        health=health.text,
        cpu=used.cpu,
        rss_bytes=used.rss_bytes,
        processes=used.processes,
        running_requests=load.running_requests if load else None,
        waiting_requests=load.waiting_requests if load else None,
        kv_use=round(load.kv_pages_in_use / load.kv_pages_total, 4) if load and load.kv_pages_total else None,
    )


@dataclass(frozen=True, slots=True)
class _Used:
    cpu: float = 0.0
    rss_bytes: int = 0
    processes: int = 0


async def _measure(process: psutil.Process) -> _Used:
    """What a process and its children use."""
    try:
        family = [process, *process.children(recursive=True)]
    except psutil.Error:
        return _Used()
    began, before = time.monotonic(), _cpu_seconds(family)
    await asyncio.sleep(_CPU_SAMPLE_S)
    cpu = (_cpu_seconds(family) - before) / (time.monotonic() - began)
    rss = 0
    for member in family:
        with contextlib.suppress(psutil.Error):
            rss += member.memory_info().rss
    return _Used(round(max(0.0, cpu), 3), rss, len(family))


def _cpu_seconds(family: list[psutil.Process]) -> float:
    total = 0.0
    for member in family:
        with contextlib.suppress(psutil.Error):
            times = member.cpu_times()
            total += times.user + times.system
    return total


def status_table(status: StackStatus) -> Table:
    """For people."""
    title = f"{status.url}/v1   models {', '.join(status.models)}   "
    title += f"supervisor {status.supervisor_pid}" if status.supervisor_pid else "no supervisor"
    table = Table(box=None, padding=(0, 2, 0, 0), title=escape(title), title_justify="left")
    columns = ("service", "state", "pid", "up", "restarts", "exit", "address", "cpu", "rss", "load")
    for name in columns:
        table.add_column(name, no_wrap=True)
    for one in status.services:
        colour = "green" if one.serving else "red" if one.state in ("failed", "ended") else "yellow"
        state = one.health if one.state == "running" else one.state
        if one.state == "waiting":
            state = f"starts in {one.next_start_s:.0f} s"
        table.add_row(
            escape(one.name),
            f"[{colour}]{state}[/{colour}]",
            str(one.pid or ""),
            duration(one.uptime_s) if one.pid else "",
            str(one.restarts),
            ServiceRecord(last_exit_code=one.last_exit_code).exit_text,
            escape(one.address),
            f"{one.cpu:.0%}" if one.pid else "",
            f"{one.rss_bytes / _MIB:,.0f} MiB" if one.pid else "",
            _load_text(one),
        )
    return table


def duration(seconds: float) -> str:
    """`42 s`, `3 min`, `5 h`, `2 d`."""
    for unit, size in (("d", 86_400), ("h", 3600), ("min", 60)):
        if seconds >= size:
            return f"{seconds // size:.0f} {unit}"
    return f"{seconds:.0f} s"


def _load_text(service: ServiceStatus) -> str:
    if service.running_requests is None:
        return ""
    kv = "" if service.kv_use is None else f", KV {service.kv_use:.0%}"
    return f"{service.running_requests} running, {service.waiting_requests or 0} waiting{kv}"
