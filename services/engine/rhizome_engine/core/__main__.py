"""`python -m rhizome_engine.core`: the process that owns the model; usually a front starts it."""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence

from rhizome_engine.settings import CoreSettings, parse_settings
from rhizome_telemetry.log_level import LevelSwitch
from rhizome_telemetry.logs import configure_logging


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the core until it is told to stop; the exit status."""
    program = "rhizome_engine.core"
    settings = parse_settings(CoreSettings, arguments, program=program)
    if not settings.core_endpoint:
        sys.stderr.write(
            f"{program}: --core-endpoint is missing; give a path such as ipc:///run/x/core.ipc\n"
        )
        return 2
    configure_logging("rhizome-engine-core", settings.log_level, settings.log_format)
    LevelSwitch(settings.log_level).install()
    # Before torch is loaded. Idle threads of a matrix product that spin would starve the other processes of a
    # small machine, and be starved by them: with two busy cores a step then takes ten times as long.
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    from rhizome_engine.core.process import run_core

    return run_core(settings)


if __name__ == "__main__":
    sys.exit(main())
