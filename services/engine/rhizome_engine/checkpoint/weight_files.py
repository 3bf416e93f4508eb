"""Safetensors in one file or in shards, mapped into memory and read one tensor at a time."""

from __future__ import annotations

import json
import struct
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open
from torch import Tensor

from rhizome_engine.checkpoint.errors import CheckpointError
from rhizome_engine.checkpoint.json_fields import JsonFields

SINGLE_FILE = "model.safetensors"
INDEX_FILE = "model.safetensors.index.json"


class WeightFiles:
    """Which file holds which tensor, and their contents.

    Files are mapped, so a tensor takes memory only where it is copied to.

    Args:
        directory: the checkpoint.

    Raises:
        CheckpointError: there are no safetensors, a shard is absent, or a file is damaged.
    """

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self._file_of: dict[str, Path] = {}
        self._expected = self._read_index()
        paths = sorted(set(self._expected.values())) or [directory / SINGLE_FILE]
        self._handles = {path: open_safetensors(path) for path in paths}
        for path, handle in self._handles.items():
            self._file_of.update(dict.fromkeys(handle.keys(), path))
        for name, path in self._expected.items():
            if name not in self._file_of:
                raise CheckpointError(f"{path}: tensor {name} is missing, but {INDEX_FILE} places it here")

    def _read_index(self) -> dict[str, Path]:
        """Return tensor name → shard; empty where the checkpoint is one file."""
        index = self.directory / INDEX_FILE
        if not index.exists():
            if not (self.directory / SINGLE_FILE).exists():
                raise CheckpointError(
                    f"{self.directory} holds neither {SINGLE_FILE} nor {INDEX_FILE}; "
                    "other weight formats must be converted to safetensors first"
                )
            return {}
        fields = JsonFields.read(index)
        section = fields.section("weight_map")
        if section is None or not all(isinstance(name, str) for name in section.values.values()):
            raise fields.bad("weight_map", "an object of tensor name to file name")
        for filename in set(section.values.values()):
            if Path(filename).name != filename:
                raise CheckpointError(f"{index}: {filename!r} must be a file beside the index")
        return {name: self.directory / filename for name, filename in section.values.items()}

    def __iter__(self) -> Iterator[str]:
        return iter(self._file_of)

    def __contains__(self, name: object) -> bool:
        return name in self._file_of

    def copy_into(self, name: str, target: Tensor) -> None:
        """Copy a tensor into its place in the model, converting to the target's dtype and device.

        Raises:
            CheckpointError: the tensor has another shape or cannot be read.
            KeyError: there is no such tensor.
        """
        path = self._file_of[name]
        handle = self._handles[path]
        try:
            shape = handle.get_slice(name).get_shape()
            if list(shape) != list(target.shape):
                raise CheckpointError(
                    f"{path}: tensor {name} has shape {list(shape)}, "
                    f"but config.json asks for {list(target.shape)}"
                )
            target.copy_(handle.get_tensor(name))
        except (SafetensorError, OSError) as error:
            raise CheckpointError(f"{path}: tensor {name} cannot be read: {error}") from error


def open_safetensors(path: Path) -> Any:
    """Map a safetensors file.

    Raises:
        CheckpointError: it is absent or damaged; the message names the first tensor that is cut off.
    """
    if not path.exists():
        raise CheckpointError(f"{path} does not exist, but {INDEX_FILE} names it; download it")
    try:
        return safe_open(path, framework="pt", device="cpu")
    except (SafetensorError, OSError) as error:
        detail = _first_truncated_tensor(path) or str(error)
        raise CheckpointError(f"{path} is damaged: {detail}; download it again") from error


def _first_truncated_tensor(path: Path) -> str:
    """Read the header by hand (u64 length, JSON, data) and say which tensor the file ends in, "" if none."""
    size = path.stat().st_size
    try:
        with path.open("rb") as file:
            (header_bytes,) = struct.unpack("<Q", file.read(8))
            if 8 + header_bytes > size:
                return f"it ends inside its header, after {size} bytes"
            header = json.loads(file.read(header_bytes))
            ends = sorted(
                (int(entry["data_offsets"][1]), name)
                for name, entry in header.items()
                if name != "__metadata__"
            )
    except (struct.error, ValueError, KeyError, TypeError, AttributeError):
        return "it does not begin with a safetensors header"
    for end, name in ends:
        needed = 8 + header_bytes + end
        if needed > size:
            return f"tensor {name} ends at byte {needed}, but the file has {size}"
    return ""
