"""One life of a core, as the front sees it: how to reach it, and whether it is still there."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable
from typing import TypeVar

import grpc

from rhizome_engine.core_record import FRONT_PEER_NAME
from rhizome_transport.errors import EngineError
from rhizome_transport.zmq_client import ZmqEngineClient

T = TypeVar("T")


class CoreLink:
    """A connection to one core process; a core that is started again gets a new link.

    Attributes:
        endpoint: the core's ipc address.
        client: the front's own requests: `Generate` and the unary methods.
        lost: set when the process is gone; open requests are lost then.
    """

    def __init__(self, endpoint: str) -> None:
        self.endpoint = endpoint
        self.client = ZmqEngineClient(endpoint, peer_name=FRONT_PEER_NAME)
        self.lost = asyncio.Event()

    async def close(self) -> None:
        """Mark the core as gone and fail what still waits for it."""
        self.lost.set()
        await self.client.close()

    async def ask(self, answer: Awaitable[T]) -> T:
        """Wait for the answer to one of the client's unary calls.

        Raises:
            EngineError: the call's own, or UNAVAILABLE because the core was lost meanwhile.
        """
        try:
            return await answer
        except EngineError:
            if self.lost.is_set():
                raise lost_error(emitted=False) from None
            raise


def lost_error(*, emitted: bool) -> EngineError:
    """What a request is told whose core died; only one that got nothing may be sent again elsewhere."""
    if emitted:
        return EngineError(
            grpc.StatusCode.ABORTED,
            "the engine's model process ended in the middle of this request; send it again",
            reason="ENGINE_LOST",
        )
    return EngineError(
        grpc.StatusCode.UNAVAILABLE,
        "the engine's model process ended and is being started again; try again in a few seconds",
        reason="ENGINE_LOST",
        retry_after_s=2.0,
    )


def loading_error() -> EngineError:
    """What a request is told before the core has loaded its model."""
    return EngineError(
        grpc.StatusCode.UNAVAILABLE,
        "the engine is loading its model; wait until its health service reports SERVING",
        reason="MODEL_LOADING",
        retry_after_s=1.0,
    )
