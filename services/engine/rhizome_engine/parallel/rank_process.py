"""Starting the process of another rank; see `parallel.worker` for what it does."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import threading
from dataclasses import asdict, dataclass

from rhizome_engine.parallel.channel import Channel
from rhizome_telemetry.logs import LogFormat


@dataclass(frozen=True, slots=True)
class RankLogging:
    """How the processes of the other ranks log; see `rhizome_telemetry.logs`."""

    level: str
    format: LogFormat


@dataclass(frozen=True, slots=True)
class RankOrders:
    """What a rank is told on its command line.

    Attributes:
        rank: which it is.
        size: how many there are.
        device: what it computes on.
        parent: process id of rank 0.
        dies_with_parent: the system may kill it when the thread that started it ends, which is rank 0's main
            thread.
        channel: descriptor of its end of the channel.
        progress: descriptor of what `Progress` shares.
        store: descriptor of the file by which the ranks meet.
        timeout_s: see `group.join`.
        logging: None for what Python does by itself.
    """

    rank: int
    size: int
    device: str
    parent: int
    dies_with_parent: bool
    channel: int
    progress: int
    store: int
    timeout_s: float
    logging: RankLogging | None

    @classmethod
    def parse(cls, text: str) -> RankOrders:
        """Read what `to_json` wrote."""
        values = json.loads(text)
        if values["logging"] is not None:
            values["logging"] = RankLogging(**values["logging"])
        return cls(**values)

    def to_json(self) -> str:
        """Return it as an argument of a command line."""
        return json.dumps(asdict(self))


class RankProcess:
    """A running rank.

    Attributes:
        rank: which it is.
        channel: to it.
        process: it.
    """

    def __init__(
        self,
        rank: int,
        devices: list[str],
        progress: int,
        store: int,
        timeout_s: float,
        logging: RankLogging | None,
    ) -> None:
        self.rank = rank
        self.channel, other = Channel.pair()
        orders = RankOrders(
            rank=rank,
            size=len(devices),
            device=devices[rank],
            parent=os.getpid(),
            dies_with_parent=threading.current_thread() is threading.main_thread(),
            channel=other.fileno(),
            progress=progress,
            store=store,
            timeout_s=timeout_s,
            logging=logging,
        )
        with other:
            self.process = subprocess.Popen(
                [sys.executable, "-m", "rhizome_engine.parallel", orders.to_json()],
                stdin=subprocess.DEVNULL,
                pass_fds=(orders.channel, progress, store),
                # As for a core: threads that spin would starve those of the other ranks.
                env={"OMP_WAIT_POLICY": "PASSIVE", **os.environ},
            )

    def end(self, grace_s: float) -> int:
        """Wait for its end, kill it when that takes too long, and return its exit status."""
        try:
            return self.process.wait(grace_s)
        except subprocess.TimeoutExpired:
            self.process.kill()
            return self.process.wait()
