"""One service under supervision: real processes that end in every way."""

from __future__ import annotations

import asyncio
import signal
import time
from collections.abc import AsyncIterator, Callable
from pathlib import Path

import psutil
import pytest

from rhizome_launcher.background.keeper import FIRST_BACK_OFF_S, Keeper
from rhizome_launcher.background.state_dir import ServiceRecord
from rhizome_launcher.plan import ServicePlan
from rhizome_launcher.service_process import EXIT_UNKNOWN, ServiceProcess

PROGRAM = """
import sys, time
from pathlib import Path
runs = Path(sys.argv[1])
runs.write_text((runs.read_text() if runs.exists() else "") + "x")
print("run", len(runs.read_text()), flush=True)
steps = sys.argv[2:]
step = steps[min(len(runs.read_text()), len(steps)) - 1]
if step == "stay":
    time.sleep(600)
sys.exit(int(step))
"""


class Kept:
    """A keeper of a program that does one step at each run: ends with a code, or stays."""

    def __init__(self, folder: Path, *steps: str) -> None:
        (folder / "stepper.py").write_text(PROGRAM)
        self.log = folder / "stepper.log"
        self.records: list[ServiceRecord] = []
        plan = ServicePlan("engine", "engine", (), {}, "")
        process = ServiceProcess(
            "engine",
            "stepper",
            [str(folder / "runs"), *steps],
            log_path=self.log,
            environment={"PYTHONPATH": str(folder)},
            outlives=True,
        )
        self.keeper = Keeper(plan, process, lambda: self.records.append(self.keeper.record))

    @property
    def record(self) -> ServiceRecord:
        return self.keeper.record

    async def until(self, condition: Callable[[], bool], within_s: float = 30) -> None:
        deadline = time.monotonic() + within_s
        while not condition():
            assert time.monotonic() < deadline, self.records
            await asyncio.sleep(0.01)


@pytest.fixture
async def kept(tmp_path: Path) -> AsyncIterator[Callable[..., Kept]]:
    made: list[Kept] = []

    def make(*steps: str) -> Kept:
        made.append(Kept(tmp_path, *steps))
        return made[-1]

    yield make
    for one in made:
        await one.keeper.stop(0)


async def test_a_service_that_ends_is_started_again_later_and_later(kept: Callable[..., Kept]) -> None:
    one = kept("1", "7", "stay")
    one.keeper.start()
    await one.until(lambda: one.record.state == "running" and one.record.restarts == 2)
    waits = [record for record in one.records if record.state == "waiting" and record.next_start]
    codes = list(dict.fromkeys(record.last_exit_code for record in waits))
    assert codes == [1, 7] and one.record.last_exit_code == 7
    assert one.record.exit_text == "7"
    text = one.log.read_text()
    assert text.startswith("run 1\nrun 2\n"), "one log for all runs"
    began = [record.started for record in one.records if record.state == "running"]
    assert began[-1] - began[0] > 3 * FIRST_BACK_OFF_S - 0.1


async def test_a_service_that_cannot_serve_stays_down_until_it_is_told_to_start(
    kept: Callable[..., Kept],
) -> None:
    one = kept("2", "stay")
    one.keeper.start()
    await one.until(lambda: one.record.state == "failed")
    assert (one.record.last_exit_code, one.record.restarts, one.record.pid) == (2, 0, 0)
    await asyncio.sleep(2 * FIRST_BACK_OFF_S)
    assert one.log.read_text() == "run 1\n"
    await one.keeper.restart(1)
    await one.until(lambda: one.record.state == "running")


async def test_a_killed_service_tells_its_signal(kept: Callable[..., Kept]) -> None:
    one = kept("stay")
    one.keeper.start()
    await one.until(lambda: one.record.state == "running")
    psutil.Process(one.record.pid).kill()
    await one.until(lambda: one.record.state == "running" and one.record.restarts == 1)
    assert one.record.last_exit_code == -signal.SIGKILL


async def test_a_stopped_service_stays_down(kept: Callable[..., Kept]) -> None:
    one = kept("stay")
    one.keeper.start()
    await one.until(lambda: one.record.state == "running")
    process = psutil.Process(one.record.pid)
    await one.keeper.stop(10)
    assert not process.is_running()
    assert (one.record.state, one.record.last_exit_code) == ("stopped", -signal.SIGTERM)


async def test_a_process_that_was_left_behind_is_adopted_and_replaced(kept: Callable[..., Kept]) -> None:
    one, other = kept("stay"), kept("stay")
    one.keeper.start()
    await one.until(lambda: one.record.state == "running")
    other.keeper.start(one.record)
    await other.until(lambda: other.record.state == "running")
    assert other.record.pid == one.record.pid
    await asyncio.gather(one.keeper.stop(10), return_exceptions=True)
    await other.until(lambda: other.record.state == "running" and other.record.restarts == 1)
    assert other.record.last_exit_code == EXIT_UNKNOWN and other.record.exit_text == "unknown"


async def test_a_pid_that_somebody_else_has_now_is_not_adopted(kept: Callable[..., Kept]) -> None:
    one = kept("stay")
    other = await asyncio.create_subprocess_exec("sleep", "600")
    try:
        one.keeper.start(ServiceRecord(state="running", pid=other.pid, started=1.0))
        await one.until(lambda: one.record.state == "running")
        assert one.record.pid != other.pid
        await one.keeper.stop(1)
        assert other.returncode is None
    finally:
        other.kill()
        await other.wait()
