"""Property tests draw the same examples in every run, however slow the machine is; Ctrl-C reaches processes.

So a change fails for what it changes, not for what chance finds. `pytest --hypothesis-profile=explore` draws
new examples each time, to look for more.
"""

from __future__ import annotations

import logging
import signal
from collections.abc import Iterator

import pytest
from hypothesis import settings

if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    # Begun by a shell in the background. Processes that tests begin would inherit it, and not hear Ctrl-C.
    signal.signal(signal.SIGINT, signal.default_int_handler)

settings.register_profile("repeatable", derandomize=True, deadline=None)
settings.register_profile("explore", derandomize=False, deadline=None, print_blob=True)
settings.load_profile("repeatable")


@pytest.fixture
def own_logging() -> Iterator[None]:
    """For a test that configures the log of a whole process: of this one, which then has its own again."""
    root = logging.getLogger()
    before, level = root.handlers[:], root.level
    signals = {number: signal.getsignal(number) for number in (signal.SIGUSR1, signal.SIGUSR2)}
    yield
    logging.captureWarnings(False)
    root.handlers[:] = before
    root.setLevel(level)
    for number, handler in signals.items():
        signal.signal(number, handler)
