"""Reading batches of vLLM's KV events into the view of a backend.

vLLM's block hashes mean nothing outside it, but an event that stores blocks has their tokens: they are hashed
again in our way, chained to what their parent was, and vLLM's hash is kept only as the name by which the
block goes.

Blocks of adapters, of prompts with images or salts, in other memory than the GPU's, and of other groups than
the first (layers with a sliding window) are left out: a router knows nothing that would match them.
"""

from __future__ import annotations

from typing import Any, Final

import msgspec

from rhizome_routing.prefix.chain import sampled
from rhizome_routing.prefix.index import PrefixIndex
from rhizome_transport.block_hashes import extend_hashes, root_hash

_MOST_BLOCKS: Final = 1 << 20
"""Who claims to hold more is not believed: it would cost us 250 bytes for each."""

_STORED: Final = ("block_hashes", "parent_block_hash", "token_ids", "block_size", "lora_id", "medium")
_STORED_LATER: Final = ("lora_name", "extra_keys", "group_idx")
_REMOVED: Final = ("block_hashes", "medium", "group_idx")
_FIELDS: Final = {"BlockStored": _STORED + _STORED_LATER, "BlockRemoved": _REMOVED, "AllBlocksCleared": ()}
_decode = msgspec.msgpack.Decoder().decode


class VllmBlocks:
    """What each of vLLM's blocks is called in a backend's view."""

    def __init__(self, index: PrefixIndex, name: str) -> None:
        self._index = index
        self._name = name
        self._names: dict[int | bytes, tuple[int, int]] = {}
        self._root = root_hash("")

    def __len__(self) -> int:
        """How many blocks there are."""
        return len(self._names)

    def forget(self) -> None:
        """The cache is empty."""
        self._names.clear()
        self._index.cleared(self._name)

    def apply(self, payload: bytes) -> bool:
        """Apply a batch; whether all that is cached is known by it, because the cache was emptied.

        Raises:
            ValueError: it is none; also LookupError, TypeError and AttributeError.
        """
        emptied = False
        batch = _decode(payload)
        events = batch["events"] if isinstance(batch, dict) else batch[1]
        for event in events:
            # Versions differ in whether an event is a map or a list, with its name under `type` or in front.
            if isinstance(event, dict):
                kind, fields = event["type"], event
            else:
                kind, fields = event[0], dict(zip(_FIELDS.get(event[0], ()), event[1:], strict=False))
            if kind == "AllBlocksCleared":
                self.forget()
                emptied = True
            elif fields.get("medium") in (None, "GPU") and not fields.get("group_idx"):
                if kind == "BlockStored":
                    self._stored(fields)
                elif kind == "BlockRemoved":
                    self._removed(fields["block_hashes"])
        return emptied

    def _stored(self, fields: dict[str, Any]) -> None:
        if fields.get("lora_id") or fields.get("lora_name") or any(fields.get("extra_keys") or ()):
            return
        parent, size = fields["parent_block_hash"], fields["block_size"]
        before = (self._root, 0) if parent is None else self._names.get(parent)
        if before is None:
            return
        if len(self._names) > _MOST_BLOCKS:
            self.forget()
            raise ValueError(f"more than {_MOST_BLOCKS} blocks are said to be cached")
        hashes: list[int] = extend_hashes(fields["token_ids"], size, *before).tolist()
        for place, (theirs, ours) in enumerate(
            zip(fields["block_hashes"], hashes, strict=True), before[1] + 1
        ):
            self._names[theirs] = ours, place
        if size != self._index.view(self._name).block_size:
            self._index.set_pool(self._name, None, size)
        self._index.stored(self._name, sampled(hashes, size))

    def _removed(self, theirs: list[int | bytes]) -> None:
        ours = [named[0] for one in theirs if (named := self._names.pop(one, None)) is not None]
        self._index.removed(self._name, sampled(ours, self._index.view(self._name).block_size))
