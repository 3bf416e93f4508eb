"""What every section is given: the device, the models, the engine, and where to write figures down."""

from __future__ import annotations

import gc
import inspect
import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from gpu_bench.figures import Recorder, Results
from gpu_bench.shapes import SHAPES, LlamaShape, write_random_checkpoint


class SkipSection(Exception):  # noqa: N818 - nothing went wrong
    """A section has nothing to do here; the text says why."""


@dataclass
class Bench:
    """See the module.

    Attributes:
        device: that is measured.
        smoke: whether this only tries the script out, on tiny shapes and a CPU.
        folder: for checkpoints and caches; other processes of the same run use it too.
        records: of all sections, also those of earlier processes.
        part: of a section that is several processes.
        recorder: writes there.
    """

    device: torch.device
    smoke: bool
    folder: Path
    records: Path
    part: str = ""
    recorder: Recorder = field(init=False)
    _engine: tuple[str, Any] | None = field(default=None, init=False)

    def __post_init__(self) -> None:
        self.recorder = Recorder(self.records)

    @property
    def on_gpu(self) -> bool:
        """Whether the device is a GPU."""
        return self.device.type == "cuda"

    def put(self, name: str, value: float | int | str) -> None:
        """Write a figure down."""
        self.recorder.put(name, value)

    def earlier(self) -> Results:
        """What earlier sections found."""
        return Results.read(self.records)

    def ceilings(self) -> tuple[float, float]:
        """Bytes per second and operations per second that were measured, or an H200's by the book."""
        found = self.earlier()
        bandwidth = found.number("copy_bandwidth_tb_s") or 4.8
        rate = found.number("matmul_bf16_tflop_s") or 989.0
        return bandwidth * 1e12, rate * 1e12

    def shape_name(self, name: str = "1b") -> str:
        """The shape to measure in place of a real one while the script is tried out."""
        return "tiny" if self.smoke else name

    def shape(self, name: str = "1b") -> LlamaShape:
        """See `shape_name`."""
        return SHAPES[self.shape_name(name)]

    def checkpoint(self, name: str = "1b") -> Path:
        """A random checkpoint of a shape, made once in a run."""
        name = self.shape_name(name)
        path = self.folder / f"model-{name}"
        if not (path / "complete").exists():
            write_random_checkpoint(path, SHAPES[name], self.device)
            (path / "complete").touch()
            if self.on_gpu:
                torch.cuda.empty_cache()
        return path

    def engine(self, model: str = "1b", **options: Any) -> Any:
        """An engine, the one of the last call where it asks for the same; the one before is dropped."""
        from gpu_bench.engine import Engine

        key = repr((model, sorted(options.items())))
        if self._engine is None or self._engine[0] != key:
            self.drop_engine()
            self._engine = key, Engine(self, model, **options)
        return self._engine[1]

    def drop_engine(self) -> None:
        """Give its memory back."""
        self._engine = None
        gc.collect()
        if self.on_gpu:
            torch.cuda.empty_cache()

    def synchronize(self) -> None:
        """Wait for the device."""
        if self.on_gpu:
            torch.cuda.synchronize(self.device)

    def median_s(self, work: Callable[[], object], repeat: int = 20, warm_up: int = 3) -> float:
        """Median time of some work on the device, by its own clock."""
        for _ in range(warm_up):
            work()
        self.synchronize()
        times = []
        for _ in range(repeat):
            if self.on_gpu:
                start, end = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
                start.record()
                work()
                end.record()
                end.synchronize()
                times.append(start.elapsed_time(end) / 1e3)
            else:
                began = time.perf_counter()
                work()
                times.append(time.perf_counter() - began)
        return statistics.median(times)


def known_options(function: Callable[..., object], **options: Any) -> dict[str, Any]:
    """Those options that a function takes: a checkout may be older than this script."""
    parameters = inspect.signature(function).parameters
    return {name: value for name, value in options.items() if name in parameters}
