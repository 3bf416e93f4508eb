"""One message of ours about the prefix cache as a batch of vLLM's KV events: MessagePack.

    lists   [ts, [["BlockStored", [hashes], parent, [token ids], block size, lora id, "GPU"], …], 0]
    maps    {"ts": …, "events": [{"type": "BlockStored", "block_hashes": […], …}, …], "data_parallel_rank": 0}

vLLM wrote lists until the middle of 2026, and writes maps since; readers exist that know one of them only.
Block hashes are ours, unsigned 64-bit numbers: a reader takes them for names, and hashes the tokens itself to
find prompts.
"""

from __future__ import annotations

import time
from collections.abc import Iterable
from typing import Any, Literal

import msgspec

from rhizome.engine.v1.engine_service_pb2 import KvEvent
from rhizome_transport.kv_watch import stored_tokens

KvEventsFormat = Literal["lists", "maps"]

_MEDIUM = "GPU"
"""vLLM's word for the engine's own pool, wherever that is: what lies elsewhere, readers leave out."""

_RANK = 0


def encode_batch(events: Iterable[KvEvent], form: KvEventsFormat) -> bytes | None:
    """A batch as it is published; None where there is nothing to tell.

    Args:
        events: of a watch with token ids; an empty list of blocks is left out.
        form: how it is written.
    """
    named = [found for event in events if (found := _fields(event)) is not None]
    if not named:
        return None
    if form == "lists":
        written: Any = [
            time.time(),
            [[name, *_older(fields)] for name, fields in named],
            _RANK,
        ]
    else:
        written = {
            "ts": time.time(),
            "events": [{"type": name, **fields} for name, fields in named],
            "data_parallel_rank": _RANK,
        }
    return msgspec.msgpack.encode(written)


def cleared_event() -> KvEvent:
    """The cache is empty."""
    event = KvEvent()
    event.cleared.SetInParent()
    return event


def _older(fields: dict[str, Any]) -> list[Any]:
    """Values in the order of a time when events ended with the medium."""
    return [value for key, value in fields.items() if key != "lora_name"]


def _fields(event: KvEvent) -> tuple[str, dict[str, Any]] | None:
    kind = event.WhichOneof("event")
    if kind == "stored" and event.stored.block_hashes:
        stored = event.stored
        return "BlockStored", {
            "block_hashes": list(stored.block_hashes),
            "parent_block_hash": stored.parent_hash if stored.HasField("parent_hash") else None,
            "token_ids": stored_tokens(stored),
            "block_size": stored.block_size,
            "lora_id": None,
            "medium": _MEDIUM,
            "lora_name": None,
        }
    if kind == "removed" and event.removed.block_hashes:
        return "BlockRemoved", {"block_hashes": list(event.removed.block_hashes), "medium": _MEDIUM}
    if kind == "cleared":
        return "AllBlocksCleared", {}
    return None
