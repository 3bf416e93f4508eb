"""A core server in a thread: real sockets, scheduler and cache over a `HashRunner`, and requests for it."""

from __future__ import annotations

import threading
import time
from pathlib import Path
from typing import Any

from rhizome.engine.v1.engine_service_pb2 import GetModelInfoResponse
from rhizome.engine.v1.generate_pb2 import GenerateRequest, GenerateResponse
from rhizome_engine.batch import Batch
from rhizome_engine.core.engine_core import EngineCore
from rhizome_engine.core.orphan_watch import OrphanWatch
from rhizome_engine.core.served_model import ServedModel
from rhizome_engine.core.server import CoreServer
from rhizome_engine.core.start_delay import StartDelay
from rhizome_engine.sampling.params import SamplingParams
from rhizome_engine.scheduler.config import SchedulerConfig
from rhizome_testing.hash_runner import HashRunner, HashStep
from rhizome_transport.client import EngineClient
from rhizome_transport.frame_server import FrameServer

_STOP_LIMIT_S = 10.0


class HashCore:
    """Serves a pretended model with a vocabulary of 1000 tokens until `stop`.

    Args:
        folder: for the socket; must be private.
        orphan_grace_s: as in the engine's settings.
        start_delay_s: how long it waits for company when idle.
        **limits: of the scheduler, instead of those of this class.

    Attributes:
        model: the name it is served under.
        instance_id: of this start.
        endpoint: where it listens.
        runner: computes its steps.
        orphans: decides when it ends without a front.
        failure: what ended the loop, if it did not end well.
    """

    model = "hash"
    instance_id = "instance-1"

    def __init__(
        self, folder: Path, orphan_grace_s: float | None = None, start_delay_s: float = 0.0, **limits: Any
    ) -> None:
        folder.chmod(0o700)
        self.endpoint = f"ipc://{folder}/core.ipc"
        self.runner = HashRunner(num_pages=64, page_size=4)
        config = SchedulerConfig(**{"max_batch_size": 4, "max_queue_size": 2, **limits})
        self.core = EngineCore(self.runner, config, (7,))
        self.failure: BaseException | None = None
        self._frames = FrameServer(self.endpoint, instance_id=self.instance_id)
        model = ServedModel(
            name=self.model,
            info=GetModelInfoResponse(
                model=self.model, instance_id=self.instance_id, vocab_size=1000, embedding_size=3
            ),
            tokenizer_files={"tokenizer.json": b"{}" * 300_000, "generation_config.json": b""},
            default_sampling=SamplingParams(temperature=0.0),
        )
        self.orphans = OrphanWatch(orphan_grace_s)
        self._server = CoreServer(self._frames, self.core, model, self.orphans, StartDelay(start_delay_s))
        self._thread = threading.Thread(target=self._run, name="core")
        self._thread.start()

    @property
    def running(self) -> bool:
        """Whether the loop goes on."""
        return self._thread.is_alive()

    def slow_down(self, step_s: float = 0.02) -> None:
        """Make every step take at least so long, so that a test can do something before a request ends.

        The core computes in a thread of its own, and a busy machine may run that one alone for a while.
        """
        launch = self.runner.launch

        def launch_late(batch: Batch) -> HashStep:
            time.sleep(step_s)
            return launch(batch)

        self.runner.launch = launch_late  # type: ignore[method-assign]

    def stop(self) -> None:
        """End the loop.

        Raises:
            AssertionError: it does not end, or pages were lost on the way.
        """
        self._server.stop()
        self._thread.join(_STOP_LIMIT_S)
        assert not self._thread.is_alive(), "the core's loop does not end"
        self.core.check_conservation()

    def _run(self) -> None:
        try:
            self._server.run()
        except BaseException as error:
            self.failure = error
        finally:
            self._frames.close()


def token_request(token_ids: list[int], max_tokens: int = 5, request_id: str = "") -> GenerateRequest:
    """A greedy request that runs to its full length."""
    request = GenerateRequest(request_id=request_id)
    request.token_ids.ids.extend(token_ids)
    request.sampling.temperature = 0.0
    request.stop.max_tokens = max_tokens
    request.stop.ignore_eos = True
    return request


async def all_events(
    client: EngineClient, request: GenerateRequest, timeout_s: float | None = 20.0
) -> list[GenerateResponse]:
    """Run a request to its end."""
    return [event async for event in client.generate(request, timeout_s=timeout_s)]


def tokens_in(events: list[GenerateResponse]) -> list[int]:
    """The token ids of all deltas."""
    return [token for event in events for token in event.delta.token_ids]
