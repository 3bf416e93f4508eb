"""When processes began, whatever the clock says."""

from __future__ import annotations

import os
import subprocess
import sys
import time

import psutil
import pytest

from rhizome_transport.process_start import began_at, process_start, seconds_since


def test_a_process_is_known_by_when_it_began_and_ages():
    with subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE) as child:
        started = process_start(child.pid)
        assert began_at(child.pid, started)
        assert not began_at(child.pid, started - 5)
        assert process_start(os.getpid()) <= started
        before = seconds_since(started)
        assert 0 <= before < 60
        time.sleep(0.05)
        assert seconds_since(started) >= before + 0.05
        child.communicate(b"\n")


@pytest.mark.skipif(sys.platform != "linux", reason="elsewhere it follows the clock")
def test_setting_the_clock_changes_nothing(monkeypatch: pytest.MonkeyPatch):
    started, age_s = process_start(os.getpid()), seconds_since(process_start(os.getpid()))
    monkeypatch.setattr(time, "time", lambda: 0.0)
    assert process_start(os.getpid()) == started
    assert age_s <= seconds_since(started) < age_s + 60


def test_who_is_gone_is_told():
    with subprocess.Popen([sys.executable, "-c", ""]) as child:
        pid = child.pid
    with pytest.raises(psutil.NoSuchProcess):
        process_start(pid)
