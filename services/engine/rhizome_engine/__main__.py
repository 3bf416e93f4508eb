"""`rhizome-engine` and `python -m rhizome_engine`: the engine, front and core."""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence

from rhizome_engine.settings import EngineSettings, parse_settings


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the engine until it is told to stop; the exit status."""
    settings = parse_settings(EngineSettings, arguments, program="rhizome-engine")
    # The front starts its core by fork and exec; gRPC, which reads this once, would warn about every one.
    os.environ.setdefault("GRPC_ENABLE_FORK_SUPPORT", "0")

    from rhizome_engine.front.process import run_front
    from rhizome_telemetry.log_level import LevelSwitch
    from rhizome_telemetry.logs import configure_logging

    configure_logging("rhizome-engine", settings.log_level, settings.log_format)
    LevelSwitch(settings.log_level).install()
    try:
        return run_front(settings)
    except KeyboardInterrupt:  # before the signal handlers were in place
        return 130


if __name__ == "__main__":
    sys.exit(main())
