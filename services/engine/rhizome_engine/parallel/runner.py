"""The model runner of an engine of several ranks: rank 0's own, whose calls the other ranks repeat."""

from __future__ import annotations

import json
import sys
import weakref
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from rhizome_engine.batch import Batch, StepOutput, TokenMasks
from rhizome_engine.checkpoint.errors import CheckpointError
from rhizome_engine.checkpoint.loader import load_checkpoint
from rhizome_engine.core.runner_protocol import LaunchedStep
from rhizome_engine.parallel.frames import Kind, batch_frame, masks_frame, text_frame
from rhizome_engine.parallel.rank_process import RankLogging
from rhizome_engine.parallel.ranks import Ranks
from rhizome_engine.parallel.shares import config_of_rank
from rhizome_engine.runner import ModelRunner
from rhizome_engine.runner.device import choose_device

_ONLY_RANK_0 = ("times", "progress")
"""Settings of a runner that are for whoever looks on."""


class ParallelRunner(ModelRunner):
    """See `ModelRunner`; `launch` and what follows are repeated by the other ranks, call by call.

    Args:
        model_path: a Hugging Face checkpoint directory.
        ranks: compute; they belong to this runner if `owns_ranks`.
        owns_ranks: they end with it.
        settings: of `ModelRunner`, but for the device.

    Raises:
        RankLostError: a rank ended.
        RankRefusedError: another rank cannot serve.
        Exception: as `ModelRunner`.
    """

    def __init__(self, model_path: str | Path, ranks: Ranks, *, owns_ranks: bool, **settings: Any) -> None:
        self._ranks = ranks
        self._owns_ranks = owns_ranks
        self._launched = 0
        if owns_ranks:
            self._finalizer = weakref.finalize(self, ranks.close)
        try:
            size = len(ranks.devices)
            for_others = {name: value for name, value in settings.items() if name not in _ONLY_RANK_0}
            for_others |= {"model_path": str(model_path)}
            ranks.load([json.dumps(settings_of_rank(for_others, device, size)) for device in ranks.devices])
            super().__init__(
                model_path, group=ranks.group, **settings_of_rank(settings, ranks.devices[0], size)
            )
            ranks.wait_for(Kind.READY)
        except (CheckpointError, ValueError):
            self.close()
            raise
        except Exception as error:
            reason = ranks.why(error)
            self.close()
            raise reason from error

    @property
    def placement(self) -> str:
        """See `ModelRunner.placement`."""
        return ", ".join(self._ranks.devices)

    def launch(self, batch: Batch) -> LaunchedStep:
        """See `ModelRunner.launch`."""
        if batch.num_tokens > self.max_num_tokens or batch.num_rows > self.max_num_rows:
            return super().launch(batch)  # which refuses it
        self._launched += 1
        with self._ranks.call(batch_frame(batch, self._launched), step=True):
            return _ParallelStep(self._ranks, self._launched, super().launch(batch))

    def use_idle_time(self) -> bool:
        """See `ModelRunner.use_idle_time`."""
        with self._ranks.call(text_frame(Kind.IDLE)):
            return super().use_idle_time()

    def close(self) -> None:
        """See `ModelRunner.close`."""
        if self._owns_ranks:
            self._finalizer()
        else:
            self._ranks.unload()


class _ParallelStep:
    """A step under way on all ranks."""

    def __init__(self, ranks: Ranks, number: int, step: LaunchedStep) -> None:
        self._ranks = ranks
        self._number = number
        self._step = step

    def sample(self, masks: TokenMasks | None, /) -> None:
        """See `LaunchedStep.sample`."""
        # Rows with masks are chosen by rank 0: which they are is all that the others need.
        rows = None if masks is None else TokenMasks(masks.rows, masks.bits[:, :0])
        with self._ranks.call(masks_frame(rows, self._number)):
            self._step.sample(masks)

    def result(self) -> StepOutput:
        """See `LaunchedStep.result`."""
        with self._ranks.call(text_frame(Kind.RESULT, step=self._number)):
            return self._step.result()


def load_runner(
    model_path: str | Path,
    *,
    tensor_parallel: int = 1,
    timeout_s: float = 60.0,
    logging: RankLogging | None = None,
    on_lost: Callable[[Exception], None] | None = None,
    device: str = "auto",
    **settings: Any,
) -> ModelRunner:
    """Load a checkpoint into this process, or into several.

    Args:
        model_path: a Hugging Face checkpoint directory.
        tensor_parallel: ranks, this process's own included.
        timeout_s: see `Ranks`.
        logging: see `Ranks`.
        on_lost: see `Ranks`.
        device: as for `ModelRunner`; of several ranks, the first one's, and the others have those after it.
        settings: of `ModelRunner`.

    Raises:
        ValueError: the model or this machine cannot be shared out so.
        Exception: as `ParallelRunner`.
    """
    if tensor_parallel == 1:
        return ModelRunner(model_path, device=device, **settings)
    if not sys.platform.startswith("linux"):
        raise ValueError(f"--tensor-parallel needs Linux, this is {sys.platform}")
    config_of_rank(load_checkpoint(model_path).config, tensor_parallel)  # before anything is started
    devices = devices_of_ranks(device, tensor_parallel)
    ranks = Ranks(devices, timeout_s=timeout_s, logging=logging, on_lost=on_lost)
    return ParallelRunner(model_path, ranks, owns_ranks=True, **settings)


def devices_of_ranks(device: str, size: int) -> list[str]:
    """Return the device of each rank: GPUs one after the other, or the CPU for all.

    Raises:
        ValueError: there are too few GPUs.
    """
    first = choose_device(device)
    if first.type == "cpu":
        return ["cpu"] * size
    count = torch.cuda.device_count()
    if first.index + size > count:
        raise ValueError(
            f"--tensor-parallel {size} from {first} on needs {first.index + size} GPUs, and there are {count}"
        )
    return [f"{first.type}:{first.index + rank}" for rank in range(size)]


def settings_of_rank(settings: dict[str, Any], device: str, size: int) -> dict[str, Any]:
    """Return the settings of one rank's runner: on a CPU all share threads and memory."""
    own = {**settings, "device": device}
    if device == "cpu":
        threads = settings.get("num_threads") or torch.get_num_threads()
        own["num_threads"] = max(threads // size, 1)
        own["memory_share"] = settings.get("memory_share", 1.0) / size
    return own
