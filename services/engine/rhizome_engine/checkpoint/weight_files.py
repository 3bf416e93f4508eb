"""A checkpoint's safetensors, one file or shards, read one block of rows at a time."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

from torch import Tensor

from rhizome_engine.checkpoint.errors import CheckpointError
from rhizome_engine.checkpoint.json_fields import JsonFields
from rhizome_engine.checkpoint.safetensors_file import SafetensorsFile, TensorEntry
from rhizome_engine.models.stored_layout import StoredLayout, with_prefix

SINGLE_FILE = "model.safetensors"
INDEX_FILE = "model.safetensors.index.json"
BLOCK_ELEMENTS = 2**17
"""About so many elements of a matrix are read at once: they stay in the cache, and do not show in memory."""
_AHEAD_BYTES = 2**25


class WeightFiles:
    """Which file holds which tensor, and their contents.

    Files are mapped, so a tensor takes memory only where it is copied to.

    Args:
        directory: the checkpoint.
        layout: brings the names in the files to those of the model; all names below are the latter.

    Raises:
        CheckpointError: there are no safetensors, a shard is absent, or a file is damaged.
    """

    def __init__(self, directory: Path, layout: StoredLayout = with_prefix) -> None:
        self.directory = directory
        self._file_of: dict[str, SafetensorsFile] = {}
        expected = self._read_index()
        paths = sorted(set(expected.values())) or [directory / SINGLE_FILE]
        stored: set[str] = set()
        for path in paths:
            file = _open(path)
            stored.update(file.entries)
            file.entries = layout(file.entries)
            self._file_of.update(dict.fromkeys(file.entries, file))
        for name, path in expected.items():
            if name not in stored:
                raise CheckpointError(f"{path}: tensor {name} is missing, but {INDEX_FILE} places it here")

    def _read_index(self) -> dict[str, Path]:
        """Return tensor name → shard; empty where the checkpoint is one file.

        One file comes first, as in transformers: an index beside it is left over from an earlier save.
        """
        index = self.directory / INDEX_FILE
        if (self.directory / SINGLE_FILE).exists():
            return {}
        if not index.exists():
            raise CheckpointError(
                f"{self.directory} holds neither {SINGLE_FILE} nor {INDEX_FILE}; "
                "other weight formats must be converted to safetensors first"
            )
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

    def entry(self, name: str) -> TensorEntry:
        """Return type, shape and place of a tensor.

        Raises:
            CheckpointError: there is no such tensor.
        """
        if name not in self._file_of:
            raise CheckpointError(f"{self.directory}: the safetensors lack tensor {name}")
        return self._file_of[name].entries[name]

    def path_of(self, name: str) -> Path:
        """Return the file that holds a tensor."""
        return self._file_of[name].path

    def place(self, name: str) -> tuple[str, int]:
        """Return what sorts tensors in the order of the disk; first what is missing."""
        if name not in self._file_of:
            return "", 0
        return str(self._file_of[name].path), self._file_of[name].entries[name].start

    def tensor(self, name: str, expected_shape: Sequence[int], kinds: Iterable[str]) -> Tensor:
        """Return a tensor as a view of its file.

        Args:
            name: of the tensor.
            expected_shape: that it must have.
            kinds: types that it may have, as safetensors spells them.

        Raises:
            CheckpointError: it is missing, or of another shape or type.
        """
        entry, kinds = self.entry(name), list(kinds)
        path = self.path_of(name)
        if entry.dtype not in kinds:
            raise CheckpointError(f"{path}: tensor {name} holds {entry.dtype}, expected {' or '.join(kinds)}")
        if entry.shape != tuple(expected_shape):
            raise CheckpointError(
                f"{path}: tensor {name} has shape {list(entry.shape)}, "
                f"but config.json asks for {list(expected_shape)}"
            )
        return self._file_of[name].tensor(name)

    def row_blocks(
        self,
        name: str,
        expected_shape: Sequence[int],
        kinds: Iterable[str],
        block_bytes: int | None = None,
        wanted: Iterable[tuple[int, int]] | None = None,
    ) -> Iterator[tuple[int, Tensor]]:
        """Read a tensor as (first row, rows), so that little of it is in memory twice.

        A block is valid until the next one is asked for; its memory is given back then.

        Args:
            name: of the tensor.
            expected_shape: that it must have.
            kinds: types that it may have, as safetensors spells them.
            block_bytes: most bytes of a block of more than one row; None for about `BLOCK_ELEMENTS`.
            wanted: spans of the rows that are needed; None for all.

        Raises:
            CheckpointError: as for `tensor`.
        """
        tensor = self.tensor(name, expected_shape, kinds)
        file, entry = self._file_of[name], self.entry(name)
        row_bytes = math.prod(entry.shape[1:]) * tensor.itemsize
        elements = BLOCK_ELEMENTS if block_bytes is None else block_bytes // tensor.itemsize
        for start, stop in row_spans(entry.shape, block_elements=elements, wanted=wanted):
            first, last = entry.start + start * row_bytes, entry.start + stop * row_bytes
            # Beyond this tensor comes the next one, where tensors are read in the order of the disk.
            file.prefetch(first + _AHEAD_BYTES, last + _AHEAD_BYTES)
            yield start, tensor[start:stop]
            file.release(first, last)

    def release(self, name: str) -> None:
        """Give back the memory of a tensor that was read whole."""
        entry = self.entry(name)
        self._file_of[name].release(entry.start, entry.end)


def row_spans(
    shape: Sequence[int],
    multiple_of: int = 1,
    block_elements: int = BLOCK_ELEMENTS,
    wanted: Iterable[tuple[int, int]] | None = None,
) -> Iterator[tuple[int, int]]:
    """Cut the rows of a tensor into blocks, as (start, stop).

    Args:
        shape: of the tensor.
        multiple_of: of which each block's first row is one.
        block_elements: at most so many elements a block, where it has more than the fewest rows.
        wanted: spans of rows that must be there, (first, one past the last); None for all.
    """
    step = max(1, block_elements // max(1, math.prod(shape[1:])) // multiple_of) * multiple_of
    for first, last in [(0, shape[0])] if wanted is None else wanted:
        first -= first % multiple_of
        stop = min(-(-last // multiple_of) * multiple_of, shape[0])
        for start in range(first, stop, step):
            yield start, min(start + step, stop)


def _open(path: Path) -> SafetensorsFile:
    try:
        return SafetensorsFile(path)
    except FileNotFoundError:
        raise CheckpointError(f"{path} does not exist, but {INDEX_FILE} names it; download it") from None
    except OSError as error:
        raise CheckpointError(f"{path} cannot be read: {error}") from error
