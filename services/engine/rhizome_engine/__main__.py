"""`rhizome-engine` and `python -m rhizome_engine`: the engine, front and core."""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence

from rhizome_engine.settings import EngineSettings, parse_settings


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the engine until it is told to stop; the exit status."""
    settings = parse_settings(EngineSettings, arguments, program="rhizome-engine")
    from rhizome_engine.front.process import run_front
    # The front starts its core by fork and exec; gRPC's own fork handlers only warn about that.
    os.environ.setdefault("GRPC_ENABLE_FORK_SUPPORT", "0")
    from rhizome_telemetry.logs import configure_logging

    configure_logging("rhizome-engine", settings.log_level)
    return run_front(settings)


if __name__ == "__main__":
    sys.exit(main())
