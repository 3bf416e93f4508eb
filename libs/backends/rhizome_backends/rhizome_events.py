"""Following one of our engines' `WatchKvEvents`, so that its view is exact.

A stream begins with a snapshot. A number that does not follow the one before, or another instance, means that
something was lost: the stream is opened anew. While there is no stream the view is a guess, from what it was
last.
"""

from __future__ import annotations

import asyncio
import logging
import random
from collections.abc import Callable
from typing import Final

import grpc
import grpc.aio
from google.protobuf.message import DecodeError

from rhizome.engine.v1.engine_service_pb2 import WatchKvEventsRequest, WatchKvEventsResponse
from rhizome_backends.base import EngineCall
from rhizome_routing.prefix.chain import sampled
from rhizome_routing.prefix.index import PrefixIndex
from rhizome_transport.errors import EngineError, from_rpc_error

_PAUSES_S: Final = (0.1, 2.0)
"""Between two attempts: the first, and the longest."""

_UNIMPLEMENTED_PAUSE_S: Final = 30.0
"""An older engine has no events; the one that replaces it may."""

_log = logging.getLogger(__name__)


class EngineEvents:
    """Applies one stream's messages to a backend's view."""

    def __init__(self, index: PrefixIndex, name: str) -> None:
        self._index = index
        self._name = name
        self._instance_id = ""
        self._sequence: int | None = None

    def apply(self, message: WatchKvEventsResponse) -> bool:
        """Apply one message; `False` if others before it are missing, and nothing was applied."""
        snapshot = bool(message.events) and message.events[0].HasField("cleared")
        if not snapshot and (
            self._sequence is None
            or message.sequence != self._sequence + 1
            or message.instance_id != self._instance_id
        ):
            return False
        self._sequence, self._instance_id = message.sequence, message.instance_id
        index, name = self._index, self._name
        index.set_exact(name, True)
        for event in message.events:
            match event.WhichOneof("event"):
                case "cleared":
                    index.cleared(name)
                case "stored":
                    stored = event.stored
                    if stored.block_size != index.view(name).block_size:
                        index.set_pool(name, None, stored.block_size)
                    index.stored(name, sampled(stored.block_hashes, stored.block_size))
                case "removed":
                    size = index.view(name).block_size
                    index.removed(name, sampled(event.removed.block_hashes, size))
        return True


async def follow_engine(index: PrefixIndex, name: str, open_call: Callable[[str, bytes], EngineCall]) -> None:
    """Keep the view of backend `name` exact until cancelled; the backend may come and go."""
    first, longest = _PAUSES_S
    pause_s = first
    request = WatchKvEventsRequest().SerializeToString()
    while True:
        events = EngineEvents(index, name)
        call = open_call("WatchKvEvents", request)
        try:
            while isinstance(payload := await call.read(), bytes):
                if not events.apply(WatchKvEventsResponse.FromString(payload)):
                    _log.info("KV events of backend %s have a gap; asking for a snapshot", name)
                    break
                pause_s = first
        except (grpc.aio.AioRpcError, EngineError) as error:
            if from_rpc_error(error).code is grpc.StatusCode.UNIMPLEMENTED:
                pause_s = _UNIMPLEMENTED_PAUSE_S
        except (DecodeError, ValueError) as error:
            _log.warning("KV events of backend %s cannot be read: %s", name, error)
        except asyncio.CancelledError:
            task = asyncio.current_task()
            if task is not None and task.cancelling():
                raise
            # So grpc tells that the channel was closed under the call.
        finally:
            call.cancel()
            index.set_exact(name, False)
        await asyncio.sleep(pause_s * random.uniform(0.5, 1.5))  # noqa: S311
        pause_s = min(longest, pause_s * 2)
