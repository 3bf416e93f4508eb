"""The level of the log, changed by signals while a gateway with workers runs."""

from __future__ import annotations

import signal
from pathlib import Path

from rhizome_testing.gateway_process import GatewayProcess


def test_workers_hear_what_their_parent_hears(tmp_path: Path) -> None:
    with GatewayProcess("127.0.0.1:9", tmp_path, "--workers", "2") as gateway:
        gateway.wait_until(lambda: len(gateway.children()) == 2, "both workers are there")
        gateway.signal(signal.SIGUSR1)  # they may not have begun to listen: then it must do them no harm
        gateway.wait_for_line("the log level is DEBUG now")
        gateway.wait_until(lambda: gateway.output.count("listening on http") == 2, "both workers serve")
        gateway.signal(signal.SIGUSR2)
        before = gateway.output.count("the log level is DEBUG now")
        gateway.signal(signal.SIGUSR1)
        gateway.wait_until(
            lambda: gateway.output.count("the log level is DEBUG now") == before + 3, "all have heard"
        )
        assert "ended with code" not in gateway.output
