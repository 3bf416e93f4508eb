"""`python -m rhizome_engine.parallel`: a rank other than 0; only rank 0 starts it."""

from __future__ import annotations

import os
import sys

from rhizome_engine.parallel.rank_process import RankOrders


def main() -> int:
    """Serve rank 0; the exit status."""
    if len(sys.argv) != 2:
        sys.stderr.write("rhizome_engine.parallel: an engine with --tensor-parallel starts this by itself\n")
        return 2
    orders = RankOrders.parse(sys.argv[1])
    if orders.logging is not None:
        from rhizome_telemetry.logs import configure_logging

        configure_logging(f"rhizome-engine-rank-{orders.rank}", orders.logging.level, orders.logging.format)
    from rhizome_engine.parallel.worker import run_worker

    return run_worker(orders)


if __name__ == "__main__":
    status = main()
    sys.stderr.flush()
    # Threads of the back ends may still hold locks; nothing is left that an orderly end would save.
    os._exit(status)
