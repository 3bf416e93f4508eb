"""The kernels of the first steps, asked for before there are weights: steps over tensors without memory.

What a core does before it serves (`core/warm_up.py`) is done with a model, a KV pool and tables on the device
"meta": the same scheduler makes the same batches, so kernels are launched with the same shapes, strides and
alignments. `CompileAhead` compiles what would be launched.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from dataclasses import replace
from typing import TYPE_CHECKING, TypeVar

import torch

from rhizome_engine.attention.choose import AttentionChoice, make_attention
from rhizome_engine.attention.paged_kv import PagedKV
from rhizome_engine.batch import Batch, StepOutput, TokenMasks
from rhizome_engine.checkpoint.model_config import ModelConfig
from rhizome_engine.core.runner_protocol import LaunchedStep, StepCounts
from rhizome_engine.models.decoder import Decoder, FormatOf
from rhizome_engine.models.family import TensorNames
from rhizome_engine.parallel.group import RankGroup
from rhizome_engine.runner.numerics import Numerics
from rhizome_engine.runner.step_computer import StepComputer
from rhizome_engine.scheduler.config import SchedulerConfig

if TYPE_CHECKING:
    from rhizome_engine.kernels.triton.compile_ahead import CompileAhead

logger = logging.getLogger(__name__)

T = TypeVar("T")


class _Step:
    """A step whose tokens are all 0; errors are left to the runner, so that the core goes on."""

    def __init__(self, runner: MetaRunner, batch: Batch) -> None:
        self._runner = runner
        self._count = len(batch.sampling)
        self._step = runner.attempt(lambda: runner.computer.begin(batch))

    def sample(self, masks: TokenMasks | None, /) -> None:
        """Launch what chooses."""
        step = self._step
        if step is not None:
            self._runner.attempt(lambda: step.sample(masks))

    def result(self) -> StepOutput:
        """There is nothing to wait for."""
        return StepOutput([0] * self._count, [None] * self._count)


class MetaRunner:
    """See `core.runner_protocol.Runner`; computes nothing, in the shapes of the real one.

    Args:
        config: of the model.
        names: of its tensors.
        numerics: of the real runner.
        format_of: how each matrix is kept.
        num_pages: of the real pool.
        page_size: tokens per page.
        max_num_tokens: tokens of the largest step.
        max_num_rows: rows of the largest step.
        num_slots: requests that hold pages at once.
        records: whether steps are recorded.

    Attributes:
        computer: as the real runner's.
        error: of the last thing that failed.
    """

    def __init__(
        self,
        config: ModelConfig,
        names: TensorNames,
        numerics: Numerics,
        format_of: FormatOf,
        *,
        num_pages: int,
        page_size: int,
        max_num_tokens: int,
        max_num_rows: int,
        num_slots: int,
        records: bool,
    ) -> None:
        from rhizome_engine.kernels.triton.triton_kernels import TritonKernels

        self.error: Exception | None = None
        # One layer of each kind: the others launch the same.
        self.config = config = replace(config, layers=tuple(dict.fromkeys(config.layers)))
        self.num_pages = num_pages
        self.page_size = page_size
        self.scheduler = SchedulerConfig(
            max_batch_size=max_num_rows,
            max_step_tokens=max_num_tokens,
            max_concurrent_requests=num_slots,
            overlap=True,
        )
        meta = torch.device("meta")
        model = Decoder(config, names, TritonKernels(meta, numerics.weight_dtype), format_of)
        kv = PagedKV(
            num_layers=config.num_layers,
            num_pages=num_pages,
            page_size=page_size,
            num_kv_heads=config.num_kv_heads,
            head_dim=config.head_dim,
            dtype=numerics.kv_dtype,
            device=meta,
        )
        self.computer = StepComputer(
            model,
            make_attention(AttentionChoice("triton", ""), kv, model.ropes),
            kv,
            max_num_tokens=max_num_tokens,
            max_num_rows=max_num_rows,
            num_slots=num_slots,
            max_context=min(config.max_position_embeddings, num_pages * page_size),
            graphs="rerun" if records else "off",
        )

    @property
    def counts(self) -> StepCounts:
        """See `Runner.counts`."""
        return self.computer.counts

    def launch(self, batch: Batch, /) -> LaunchedStep:
        """See `Runner.launch`."""
        return _Step(self, batch)

    def attempt(self, function: Callable[[], T]) -> T | None:
        """Call a function; None where it fails, and `error` says why."""
        try:
            return function()
        except Exception as error:  # whatever has no "meta": other kernels are still worth asking for
            self.error = error
            return None

    def use_idle_time(self) -> bool:
        """See `Runner.use_idle_time`."""
        return self.computer.use_idle_time()


def walk(make_runner: Callable[[], MetaRunner]) -> None:
    """Do what a core does before it serves, and record what it will record first.

    Raises:
        Exception: the last that something raised, once everything was attempted.
    """
    from rhizome_engine.core.warm_up import PROMPT_TOKENS, warm_up  # not all who run a model have a core

    runner = make_runner()
    warm_up(runner, runner.scheduler, PROMPT_TOKENS)
    while runner.error is None and runner.use_idle_time():
        pass
    if runner.error is not None:
        raise runner.error


def compile_first_kernels(
    device: torch.device,
    numerics: Numerics,
    attention: str,
    group: RankGroup | None,
    make_runner: Callable[[], MetaRunner],
) -> CompileAhead | None:
    """Begin to compile; None where nothing would be, or Triton cannot.

    Args:
        device: of the model.
        numerics: of the model.
        attention: the back end's name.
        group: the ranks that share the model; their sums have no "meta".
        make_runner: called in another thread.
    """
    # FlashAttention's functions know no "meta"; what they leave to our kernels, Triton's back end has too.
    ours = numerics.kernels.name == "triton" and attention in ("triton", "flash_attn")
    if device.type != "cuda" or group is not None or not ours:
        return None
    try:
        from rhizome_engine.kernels.triton.compile_ahead import CompileAhead
    except ImportError as error:
        logger.info("kernels are not compiled ahead: %s", error)
        return None
    return CompileAhead(lambda: walk(make_runner), device)
