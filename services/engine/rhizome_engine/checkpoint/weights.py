"""Filling a model from a checkpoint's safetensors: in the order of the disk, by several threads."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path

import torch

from rhizome_engine.checkpoint.carrier import Carrier, InPlace, carrier_to
from rhizome_engine.checkpoint.errors import CheckpointError
from rhizome_engine.checkpoint.json_fields import JsonFields
from rhizome_engine.checkpoint.progress import LoadProgress, show_progress
from rhizome_engine.checkpoint.quantised.base import QuantisedFormat, dequantise
from rhizome_engine.checkpoint.quantised.choose import quantised_format
from rhizome_engine.checkpoint.weight_files import WeightFiles
from rhizome_engine.memory_size import format_bytes
from rhizome_engine.models.stored_layout import StoredLayout, with_prefix
from rhizome_engine.weights.base import QuantisedRows
from rhizome_engine.weights.format import WeightFormat
from rhizome_engine.weights.share import cut_quantised
from rhizome_engine.weights.targets import MatrixTarget, ModelTargets, VectorTarget

logger = logging.getLogger(__name__)

FLOATS = ("F32", "BF16", "F16", "F64")
_MAX_THREADS = 8
"""More would wait for memory, and each holds a block."""


class CheckpointWeights:
    """The weights of a checkpoint, mapped and not yet read.

    Args:
        directory: the checkpoint.
        config: `config.json`, which says how matrices are quantised.
        layout: brings the tensors' names to those of the model.

    Attributes:
        files: the safetensors.
        quantised: how they hold matrices as integers, None where they do not.

    Raises:
        CheckpointError: there are no safetensors, a shard is absent, a file is damaged, or matrices are
            quantised in an unknown way.
    """

    def __init__(self, directory: Path, config: JsonFields, layout: StoredLayout = with_prefix) -> None:
        self.directory = directory
        self.files = WeightFiles(directory, layout)
        self.quantised = quantised_format(config, self.files)
        self._carrier: Carrier = InPlace()

    def format_of(self, module: str, in_features: int) -> WeightFormat | None:
        """Return the format that keeps a module's matrix as it is; None for floating point.

        Raises:
            CheckpointError: a tensor is missing, or of another shape or type.
        """
        return None if self.quantised is None else self.quantised.format_of(module, in_features)

    @property
    def num_bytes(self) -> int:
        """What the tensors take in the files."""
        return sum(self.files.entry(name).num_bytes for name in self.files)

    @property
    def stored_dtype(self) -> str:
        """In which format all matrices can be kept without rounding: "bfloat16", "float16" or "float32".

        The headers count, not `config.json`, which often says what the model was trained in.
        """
        entries = (self.files.entry(name) for name in self.files if name.endswith(".weight"))
        kinds = {entry.dtype for entry in entries if len(entry.shape) > 1 and entry.dtype in FLOATS}
        only = kinds.pop() if len(kinds) == 1 else ""
        return {"BF16": "bfloat16", "F16": "float16"}.get(only, "float32")

    def has_own_head(self, embedding: str, head: str) -> bool:
        """Whether an output layer is stored that is not a copy of the embedding.

        transformers does not tie the two then, whatever `tie_word_embeddings` says.

        Args:
            embedding: module of the embedding.
            head: module of the output layer.
        """
        names = [f"{module}.weight" for module in (embedding, head)]
        if not all(name in self.files for name in names):
            return False
        first, second = (self.files.entry(name) for name in names)
        if (first.dtype, first.shape) != (second.dtype, second.shape):
            return True
        blocks = (self.files.row_blocks(name, first.shape, FLOATS) for name in names)
        return any(not torch.equal(rows, others) for (_, rows), (_, others) in zip(*blocks, strict=True))

    def fill(self, targets: ModelTargets, *, progress: bool = False, carrier: Carrier | None = None) -> None:
        """Fill a model, quantising what is kept as integers.

        Args:
            targets: where everything belongs.
            progress: show how far it is, on the terminal or in the log.
            carrier: brings rows to the model's device; None for the one that suits it.

        Raises:
            CheckpointError: a tensor is missing, has another shape or type, or cannot be quantised; the
                message names it.
        """
        shapes = {name: target.shape for name, target in targets.vectors.items()}
        for module, matrix in targets.matrices.items():
            shapes.update((name, matrix.shape) for name in self._tensor_names(module))
        self._check_missing(shapes)
        num_bytes = sum(self.files.entry(name).num_bytes for name in shapes)
        started = time.perf_counter()
        with show_progress(num_bytes, len(shapes), shown=progress) as shown:
            self._carrier = carrier or carrier_to(targets.device)
            try:
                _run(self._tasks(targets, shown))
            finally:
                self._carrier.finish()
        elapsed = time.perf_counter() - started
        level = logging.INFO if progress else logging.DEBUG
        rate = format_bytes(int(num_bytes / elapsed))
        logger.log(level, "read %s of weights in %.1f s, %s/s", format_bytes(num_bytes), elapsed, rate)
        self._warn_of_unused(shapes)

    def _tensor_names(self, module: str) -> list[str]:
        """Return the tensors that make up a module's matrix."""
        if self.quantised is not None and self.quantised.holds(module):
            return self.quantised.tensor_names(module)
        return [f"{module}.weight"]

    def _tasks(self, targets: ModelTargets, progress: LoadProgress) -> Iterator[Callable[[], None]]:
        """Yield what fills one matrix each, and last what fills all vectors.

        A matrix may share bytes among neighbouring rows, so that all parts of it are one thread's.
        """
        parts: dict[int, list[tuple[str, MatrixTarget]]] = {}
        for module in sorted(
            targets.matrices, key=lambda name: self.files.place(self._tensor_names(name)[0])
        ):
            target = targets.matrices[module]
            parts.setdefault(id(target.weight), []).append((module, target))
        for members in parts.values():
            yield lambda members=members: self._fill_matrix(members, progress)  # type: ignore[misc]
        yield lambda: self._fill_vectors(targets.vectors, progress)

    def _fill_matrix(self, parts: list[tuple[str, MatrixTarget]], progress: LoadProgress) -> None:
        for module, target in parts:
            if self.quantised is not None and self.quantised.holds(module):
                self._fill_quantised(self.quantised, module, target, progress)
            else:
                self._fill_dense(f"{module}.weight", target, progress)

    def _fill_dense(self, name: str, target: MatrixTarget, progress: LoadProgress) -> None:
        block_bytes, left = self._carrier.block_bytes, self.files.entry(name).num_bytes
        for start, rows in self.files.row_blocks(name, target.shape, FLOATS, block_bytes, target.wanted):
            try:
                for row, part in target.places(start, len(rows)):
                    target.weight.fill(row, *self._carrier.carry([rows[part, target.columns]]))
            except ValueError as error:  # of rounding, which sees it in the scales
                raise CheckpointError(
                    f"{self.files.path_of(name)}: tensor {name} holds NaN or infinity and cannot become "
                    f"{target.weight.format} ({error}); serve it without quantization, or repair the file"
                ) from error
            progress.advance(rows.nbytes)
            left -= rows.nbytes
        progress.advance(left)  # other ranks'
        progress.finish_tensor()

    def _fill_quantised(
        self, quantised: QuantisedFormat, module: str, target: MatrixTarget, progress: LoadProgress
    ) -> None:
        """Fill with integers as they are, or with what they stand for where the matrix is kept otherwise."""
        stored = quantised.format_of(module, target.shape[1])
        kept = stored if target.share is None else target.share.kept_format(module, stored)
        for start, block in quantised.row_blocks(module, target.shape, target.wanted):
            if not block.scales.isfinite().all():
                raise CheckpointError(f"{self.directory}: {module} has scales that are NaN or infinite")
            for row, part in target.places(start, len(block.q)):
                rows = self._carried(cut_quantised(block, part, target.columns))
                if target.weight.format == kept:
                    target.weight.fill_quantised(row, rows)
                else:
                    target.weight.fill(row, dequantise(rows))
        for name in quantised.tensor_names(module):
            self.files.release(name)
            progress.advance(self.files.entry(name).num_bytes)
            progress.finish_tensor()

    def _carried(self, rows: QuantisedRows) -> QuantisedRows:
        tensors = [tensor for tensor in (rows.q, rows.scales, rows.offsets) if tensor is not None]
        q, scales, *offsets = self._carrier.carry(tensors)
        return QuantisedRows(q, scales, offsets[0] if offsets else None)

    def _fill_vectors(self, targets: dict[str, VectorTarget], progress: LoadProgress) -> None:
        for name, target in targets.items():
            block_bytes, left = self._carrier.block_bytes, self.files.entry(name).num_bytes
            for start, values in self.files.row_blocks(
                name, target.shape, FLOATS, block_bytes, target.wanted
            ):
                for place, which in target.places(start, len(values)):
                    chosen = values[which]
                    part = target.tensor[place : place + len(chosen)]
                    part.copy_(self._carrier.carry([chosen])[0])
                    if target.plus:
                        part.add_(target.plus)
                progress.advance(values.nbytes)
                left -= values.nbytes
            progress.advance(left)
            progress.finish_tensor()

    def _check_missing(self, shapes: dict[str, list[int]]) -> None:
        missing = [name for name in shapes if name not in self.files]
        if missing:
            shown = ", ".join(f"{name} {shapes[name]}" for name in missing[:5])
            more = f" and {len(missing) - 5} more" if len(missing) > 5 else ""
            raise CheckpointError(
                f"{self.directory}: the safetensors lack {len(missing)} tensors: {shown}{more}"
            )

    def _warn_of_unused(self, used: dict[str, list[int]]) -> None:
        # Old checkpoints hold rotary tables, and tied ones may repeat the embedding as lm_head.
        harmless = ("inv_freq", "lm_head.weight")
        unused = [name for name in self.files if name not in used and not name.endswith(harmless)]
        if unused:
            logger.warning(
                "%s: %d tensors are not used, the first is %s", self.directory, len(unused), unused[0]
            )


def _run(tasks: Iterator[Callable[[], None]]) -> None:
    """Run tasks in as many threads as PyTorch would use; the first failure is raised, the rest left out."""
    with _single_threaded_torch() as num_threads:
        executor = ThreadPoolExecutor(min(num_threads, _MAX_THREADS), "load-weights")
        try:
            for done in [executor.submit(task) for task in tasks]:
                done.result()
        finally:
            executor.shutdown(cancel_futures=True)


@contextmanager
def _single_threaded_torch() -> Iterator[int]:
    """Let PyTorch use one thread per operation, here and in new threads; yield the usual number.

    Its own threads wait for each other after every operation, which a busy machine turns into milliseconds.
    """
    usual = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield usual
    finally:
        torch.set_num_threads(usual)
