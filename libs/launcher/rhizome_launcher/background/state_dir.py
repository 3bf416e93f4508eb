"""The folder that a background stack is known by: what runs, who looks after it, where its logs are.

```
.run/stack/            mode 0700
    lock               held by the supervisor while it lives, or by an `up` or `down` that is at work
    plan.json          what the stack consists of, as `up` decided it
    state.json         what became of it: process ids, restarts, exit codes; written anew at every change
    control.sock       where the supervisor takes orders
    logs/              one file per service, and the supervisor's own
```
"""

from __future__ import annotations

import contextlib
import dataclasses
import fcntl
import json
import os
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final, Literal

import psutil

from rhizome_launcher.plan import ServicePlan, StackError, StackPlan, StackSettings
from rhizome_launcher.service_process import EXIT_UNKNOWN, is_alive
from rhizome_transport.process_start import began_at

DEFAULT_STATE_DIR: Final = Path(".run/stack")
SUPERVISOR: Final = "supervisor"
_POLL_S: Final = 0.05
_GOODBYE_S: Final = 5.0

ServiceState = Literal["starting", "running", "waiting", "failed", "stopping", "stopped"]
"""`waiting`: it ended, and is started again after a while; `failed`: it cannot serve, and stays down."""


@dataclass(frozen=True, slots=True)
class ServiceRecord:
    """What the supervisor knows of one service.

    Attributes:
        state: see `ServiceState`.
        pid: of its process, 0 when there is none.
        started: when that process did, as `process_start` tells it; a reused pid is told apart.
        restarts: how often it was started again because it had ended by itself.
        last_exit_code: of the process before; None when none ended, negative for a signal.
        next_start: when a waiting one is started again, in seconds since the epoch.
    """

    state: ServiceState = "starting"
    pid: int = 0
    started: float = 0.0
    restarts: int = 0
    last_exit_code: int | None = None
    next_start: float = 0.0

    def process(self) -> psutil.Process | None:
        """Its process, if that one runs still."""
        if not self.pid:
            return None
        try:
            process = psutil.Process(self.pid)
            same = began_at(self.pid, self.started)
        except psutil.NoSuchProcess:
            return None
        return process if same and is_alive(process) else None

    @property
    def exit_text(self) -> str:
        """The last exit code for people."""
        if self.last_exit_code is None:
            return ""
        return "unknown" if self.last_exit_code == EXIT_UNKNOWN else str(self.last_exit_code)


@dataclass(frozen=True, slots=True)
class SavedPlan:
    """A plan with what the supervisor must know beside it.

    Attributes:
        stack: services.
        wanted: what `up` was asked for, as text; the same request finds the same stack.
        drain_timeout_s: time for open answers.
        ready_timeout_s: time until everything serves.
        max_log_bytes: a log that grew larger is cut.
        kept_logs: how many older logs are kept of each service.
    """

    stack: StackPlan
    wanted: str
    drain_timeout_s: float
    ready_timeout_s: float
    max_log_bytes: int
    kept_logs: int


@dataclass(frozen=True, slots=True)
class State:
    """What became of a plan.

    Attributes:
        supervisor_pid: who writes this.
        services: by name.
    """

    supervisor_pid: int = 0
    services: dict[str, ServiceRecord] = field(default_factory=dict)


class StateDir:
    """The folder. Nothing is made before `create`."""

    def __init__(self, path: Path) -> None:
        self.path = path.absolute()
        self.log_dir = self.path / "logs"
        self.control = self.path / "control.sock"
        self._lock = self.path / "lock"
        self._plan = self.path / "plan.json"
        self._state = self.path / "state.json"

    def log(self, name: str) -> Path:
        """The log of a service, or of the supervisor."""
        return self.log_dir / f"{name}.log"

    def create(self) -> None:
        """Make it, readable for this user alone.

        Raises:
            StackError: it cannot be made, or is somebody else's.
        """
        try:
            self.log_dir.mkdir(parents=True, exist_ok=True, mode=0o700)
            self.path.chmod(0o700)
        except OSError as error:
            raise StackError(
                f"{self.path} cannot hold the stack's state ({error.strerror}); choose another folder with "
                "--state-dir."
            ) from None

    def try_lock(self, patience_s: float = 0.0) -> int | None:
        """Take the lock; None while somebody else has it.

        Returns:
            A descriptor that holds it until it, and every copy in another process, is closed.
        """
        deadline = time.monotonic() + patience_s
        while (descriptor := self._try_lock_once()) is None and time.monotonic() < deadline:
            time.sleep(_POLL_S)
        return descriptor

    @contextlib.contextmanager
    def locked(self, patience_s: float) -> Iterator[bool]:
        """Hold the lock within the block; yields whether it could be had."""
        descriptor = self.try_lock(patience_s)
        try:
            yield descriptor is not None
        finally:
            if descriptor is not None:
                os.close(descriptor)

    def is_supervised(self) -> bool:
        """Whether a supervisor, an `up` or a `down` is at work; leaves no trace."""
        try:
            with self._lock.open("rb") as lock:
                fcntl.flock(lock, fcntl.LOCK_SH | fcntl.LOCK_NB)
        except FileNotFoundError:
            return False
        except BlockingIOError:
            return True
        return False

    def read_plan(self) -> SavedPlan | None:
        """The plan; None where there is no stack."""
        data = _read(self._plan)
        if data is None:
            return None
        stack = data.pop("stack")
        services = tuple(
            ServicePlan(**{**service, "arguments": tuple(service["arguments"])})
            for service in stack.pop("services")
        )
        folder, models = stack.pop("sockets"), tuple(stack.pop("models"))
        sockets = None if folder is None else Path(folder)
        return SavedPlan(stack=StackPlan(services=services, sockets=sockets, models=models, **stack), **data)

    def write_plan(self, plan: SavedPlan) -> None:
        """Keep the plan for the supervisor and those that come later."""
        _write(self._plan, dataclasses.asdict(plan))

    def read_state(self) -> State:
        """What became of the plan; empty where nothing was started."""
        data = _read(self._state) or {}
        services = {name: ServiceRecord(**record) for name, record in data.get("services", {}).items()}
        return State(int(data.get("supervisor_pid", 0)), services)

    def write_state(self, state: State) -> None:
        """Write it, readable in whole or not at all."""
        _write(self._state, dataclasses.asdict(state))

    def forget(self, *, but_lock: bool = False) -> None:
        """Remove everything but the logs; only for who holds the lock."""
        for path in (self.control, self._state, self._plan):
            path.unlink(missing_ok=True)
        if not but_lock:
            self._lock.unlink(missing_ok=True)

    def _try_lock_once(self) -> int | None:
        try:
            descriptor = os.open(self._lock, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        except FileNotFoundError:
            return None
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            if os.fstat(descriptor).st_ino == self._lock.stat().st_ino:
                return descriptor
        except OSError:  # taken, or removed by who had it
            pass
        os.close(descriptor)
        return None


def stop_timeout_s(plan: SavedPlan) -> float:
    """Time that each layer has to end: what open answers get, and a while to say goodbye."""
    return plan.drain_timeout_s + _GOODBYE_S


def describe(settings: StackSettings) -> str:
    """What is asked for, as text that is equal for equal requests."""
    return json.dumps(dataclasses.asdict(settings), default=str, sort_keys=True)


def _read(path: Path) -> dict[str, Any] | None:
    try:
        data: dict[str, Any] = json.loads(path.read_text())
    except FileNotFoundError:
        return None
    except ValueError:
        raise StackError(f"{path} is damaged; stop what runs of the stack, and remove the file.") from None
    return data


def _write(path: Path, data: dict[str, Any]) -> None:
    unfinished = path.with_suffix(".tmp")
    unfinished.write_text(json.dumps(data, default=str, indent=1))
    unfinished.replace(path)
