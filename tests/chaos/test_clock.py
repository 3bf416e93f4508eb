"""The wall clock jumps: leases, rates, deadlines and histograms go by another clock, which does not.

`wall_clock.c` stands between the processes and the system's wall clock. (libfaketime would, too; but where it
is told to leave the monotonic clock alone, waits on that clock end at once, and the engine only spins.)
"""

from __future__ import annotations

import asyncio
import json
import shutil
import struct
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import httpx
import psutil
import pytest
from tests.chaos.asking import End, Traffic, ends
from tests.chaos.at_rest import assert_engines_free, assert_nothing_leaked, assert_one_end_each
from tests.chaos.conftest import FULL, Report
from tests.chaos.stack import MODEL, WholeStack

from rhizome_engine.core_record import CoreRecord, read_core_record
from rhizome_engine.settings import CoreSettings
from rhizome_testing.gateway_process import GatewayProcess
from rhizome_testing.running_stack import DEMO_MODEL

HOUR_S, DAY_S = 3600, 86400
JUMPS = (HOUR_S, -HOUR_S, 400 * DAY_S, -400 * DAY_S, 0) if FULL else (HOUR_S, -HOUR_S, 0)
_SOURCE = Path(__file__).with_name("wall_clock.c")


class Clock:
    """The wall clock of processes that were started with its environment.

    Attributes:
        environment: for them.
    """

    def __init__(self, folder: Path) -> None:
        compiler = shutil.which("cc") or shutil.which("gcc")
        if not compiler or not sys.platform.startswith("linux"):
            pytest.skip("install gcc: another wall clock is preloaded, which has to be compiled (Linux only)")
        library = folder / "wall_clock.so"
        build = [compiler, "-shared", "-fPIC", "-O1", "-o", str(library), str(_SOURCE), "-ldl"]
        subprocess.run(build, check=True)
        self._file = folder / "offset"
        self.set(0)
        self.environment = {"LD_PRELOAD": str(library), "WALL_CLOCK_FILE": str(self._file)}

    def set(self, off_s: int) -> None:
        """Jump; `off_s` is relative to the true time."""
        with self._file.open("r+b" if self._file.exists() else "wb") as file:
            file.write(struct.pack("=q", off_s))


@pytest.fixture
def clock(tmp_path: Path) -> Iterator[Clock]:
    """A wall clock that is right."""
    yield Clock(tmp_path)


def test_the_clock_that_is_faked_is_the_wall_clock_alone(clock: Clock) -> None:
    """Else the tests below would prove nothing."""
    program = (
        "import time; print(time.time() - float(open('/proc/uptime').read().split()[0]), time.monotonic())"
    )

    def seen() -> tuple[float, float]:
        text = subprocess.run(
            [sys.executable, "-c", program], capture_output=True, text=True, check=True, env=clock.environment
        ).stdout
        wall, monotonic = map(float, text.split())
        return wall, monotonic

    right, began = seen()
    clock.set(HOUR_S)
    jumped, later = seen()
    assert abs(jumped - right - HOUR_S) < 60
    assert began <= later < began + 60


@pytest.mark.skipif(not FULL, reason="make chaos runs it: a stack is started")
@pytest.mark.timeout(300)
async def test_a_clock_that_jumps_ends_no_request_and_spoils_no_figure(
    clock: Clock, tmp_path: Path, report: Report
) -> None:
    with WholeStack(tmp_path / "whole", environment=clock.environment) as stack:
        async with Traffic(stack, 8.0, seed=7) as traffic:
            await traffic.count_until(5)
            before = await asyncio.to_thread(stack.held)
            for off in JUMPS:
                clock.set(off)
                await traffic.count_until(8)
            asked = await traffic.stop()
        report["ends"] = ends(asked)
        assert_one_end_each(traffic.sent, asked)
        assert {one.end for one in asked} <= {End.ANSWER, End.CANCEL}, [one for one in asked if one.detail][
            :3
        ]
        assert stack.processes() == {name: held.pid for name, held in before.items()}, (
            "something was replaced"
        )
        await asyncio.to_thread(assert_engines_free, stack)
        await asyncio.to_thread(assert_nothing_leaked, stack, before)
        longest = max(one.ended_s - one.began_s for one in asked)
        for index in range(len(stack.engines)):
            load = await asyncio.to_thread(stack.load, index)
            assert load is not None
            times = (load.totals.queue_time, load.totals.prefill_time, load.totals.decode_time)
            sums = [time.ToTimedelta().total_seconds() for time in times]
            assert all(0 <= total <= longest * load.totals.received for total in sums), sums


@pytest.mark.timeout(120)
def test_a_clock_that_jumps_refills_no_rate(
    stack: WholeStack, clock: Clock, tmp_path: Path, report: Report
) -> None:
    made = subprocess.run(
        [sys.executable, "-m", "rhizome_launcher", "keys", "new", "--name", "alice", "--rpm", "3",
         "--file", str(tmp_path / "keys.toml")],
        capture_output=True, text=True, check=True,
    )  # fmt: skip
    key = next(word for word in made.stdout.split() if word.startswith("sk-"))
    options = ("--keys-file", str(tmp_path / "keys.toml"))
    with GatewayProcess(stack.proxy, tmp_path, *options, environment=clock.environment) as gateway:
        gateway.wait_ready()
        statuses = [_ask(gateway.url, key) for _ in range(4)]
        for off in (HOUR_S, -HOUR_S, DAY_S):
            clock.set(off)
            statuses.append(_ask(gateway.url, key))
        report["statuses"] = statuses
        assert statuses[:3] == [200] * 3
        assert set(statuses[3:]) == {429}, "an hour on the wall is no hour of waiting"


def test_a_core_is_known_again_after_the_clock_was_set(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The kernel's time of boot moves with the clock, so no start of a process may be dated by it."""
    endpoint = f"ipc://{tmp_path}/core.ipc"
    record = CoreRecord.of_this_process(CoreSettings(model=DEMO_MODEL))
    record.write(endpoint)
    booted = psutil.boot_time()
    monkeypatch.setattr(psutil._pslinux, "boot_time", lambda: booted + 3600)
    assert read_core_record(endpoint) == record


def _ask(url: str, key: str) -> int:
    body = {"model": MODEL, "messages": [{"role": "user", "content": "Hello"}], "max_tokens": 4}
    answer = httpx.post(
        f"{url}/v1/chat/completions", json=body, headers={"Authorization": f"Bearer {key}"}, timeout=60
    )
    assert answer.status_code == 200 or json.loads(answer.text)["error"]["message"]
    return answer.status_code
