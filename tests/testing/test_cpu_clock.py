import os
import subprocess
import sys

import psutil
import pytest

from rhizome_testing.cpu_clock import cpu_seconds


def test_it_counts_what_the_system_counts_but_finer():
    before = [cpu_seconds(os.getpid()) for _ in range(50)]
    assert before == sorted(before) and len(set(before)) > 25  # no ticks
    program = "import time\nwhile time.process_time() < 0.3: pass\nprint(flush=True)\ninput()"
    words = [sys.executable, "-c", program]
    with subprocess.Popen(words, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as process:
        assert process.stdout is not None
        assert process.stdout.readline()  # it has computed, and waits
        spent = cpu_seconds(process.pid)
        assert spent >= 0.3
        assert spent == pytest.approx(sum(psutil.Process(process.pid).cpu_times()[:2]), abs=0.1)
        process.communicate(b"\n", timeout=20)


def test_a_process_that_is_gone_is_an_error():
    with subprocess.Popen([sys.executable, "-c", ""]) as process:
        process.wait(20)
    with pytest.raises(psutil.NoSuchProcess):
        cpu_seconds(process.pid)
