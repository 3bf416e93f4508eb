"""When silence is taken for a wedge, on a clock of the test's own."""

from __future__ import annotations

from pathlib import Path

import pytest

from rhizome_engine.core_pulse import Pulse, PulseWriter, pulse_path, read_pulse
from rhizome_engine.front.wedge_watch import WedgeWatch
from rhizome_engine.settings import EngineSettings


class Core:
    """A pulse and a clock that a test moves by hand."""

    def __init__(self) -> None:
        self.now = 100.0
        self.rounds = self.layers = self.steps = 0
        self.runnable = True
        self.here = True

    def read(self) -> Pulse | None:
        return Pulse(self.rounds, self.layers, self.steps, self.runnable) if self.here else None

    def watch(self, limit_s: float = 60.0) -> WedgeWatch:
        return WedgeWatch(self.read, limit_s, lambda: self.now)


def pass_time(core: Core, watch: WedgeWatch, seconds: float, **each_second: int) -> None:
    for _ in range(int(seconds)):
        core.now += 1
        for name, more in each_second.items():
            setattr(core, name, getattr(core, name) + more)
        watch.look()


def test_a_core_that_does_nothing_at_all_is_doubted_and_then_wedged() -> None:
    core = Core()
    watch = core.watch()
    pass_time(core, watch, 9)
    assert not watch.doubtful
    pass_time(core, watch, 2)
    assert watch.doubtful and not watch.wedged
    pass_time(core, watch, 50)
    assert watch.wedged
    core.rounds += 1
    pass_time(core, watch, 1, rounds=1)
    assert not watch.doubtful and watch.silent_s <= 1


def test_a_step_may_take_for_ever_while_its_layers_go_by() -> None:
    core = Core()
    watch = core.watch()
    pass_time(core, watch, 1, rounds=1)
    pass_time(core, watch, 100_000, layers=1)
    assert not watch.doubtful


def test_one_layer_that_never_ends_is_a_wedge() -> None:
    core = Core()
    watch = core.watch()
    pass_time(core, watch, 100, layers=1)
    pass_time(core, watch, 62)
    assert watch.wedged


def test_a_layer_that_compiles_for_a_minute_is_doubted_but_by_default_not_wedged() -> None:
    core = Core()
    watch = core.watch(EngineSettings.model_fields["wedge_timeout_s"].default)
    pass_time(core, watch, 60)
    assert watch.doubtful and not watch.wedged
    pass_time(core, watch, 1, layers=1)
    assert not watch.doubtful and not watch.wedged


def test_a_loop_that_goes_round_without_a_step_is_a_wedge_only_where_there_is_one_to_compute() -> None:
    core = Core()
    watch = core.watch()
    core.runnable = False
    pass_time(core, watch, 1000, rounds=5)
    assert not watch.doubtful
    core.runnable = True
    pass_time(core, watch, 1000, rounds=5, steps=1)
    assert not watch.doubtful
    pass_time(core, watch, 62, rounds=5)
    assert watch.wedged


def test_a_machine_that_slept_has_not_lost_its_core() -> None:
    core = Core()
    watch = core.watch()
    pass_time(core, watch, 1, rounds=1)
    core.now += 3600
    watch.look()
    assert not watch.doubtful


def test_a_pulse_that_is_gone_is_silence() -> None:
    core = Core()
    watch = core.watch()
    core.here = False
    pass_time(core, watch, 62)
    assert watch.wedged


def test_no_limit_is_no_wedge_but_still_a_doubt() -> None:
    core = Core()
    watch = core.watch(0.0)
    pass_time(core, watch, 5000)
    assert watch.doubtful and not watch.wedged


def test_what_a_core_writes_is_what_a_front_reads(tmp_path: Path) -> None:
    endpoint = f"ipc://{tmp_path}/core.ipc"
    assert read_pulse(endpoint) is None
    writer = PulseWriter(endpoint)
    writer.went_round(7, runnable=True)
    writer.layer_done()
    writer.layer_done()
    assert read_pulse(endpoint) == Pulse(rounds=1, layers=2, steps=7, runnable=True)
    again = PulseWriter(endpoint)  # of a core that comes after one that was killed
    assert read_pulse(endpoint) == Pulse(0, 0, 0, False)
    writer.layer_done()
    assert read_pulse(endpoint) == Pulse(0, 0, 0, False)
    again.close()
    again.layer_done()
    assert pulse_path(endpoint).stat().st_mode & 0o777 == 0o600


@pytest.mark.parametrize("content", [b"", b"short", b"x" * 64])
def test_a_file_that_is_no_pulse_is_none(tmp_path: Path, content: bytes) -> None:
    endpoint = f"ipc://{tmp_path}/core.ipc"
    pulse_path(endpoint).write_bytes(content)
    assert read_pulse(endpoint) is None
