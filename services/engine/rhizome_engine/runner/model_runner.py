"""The model runner: loads a checkpoint within the memory there is, and computes one step after the other.

A `Batch` comes in as numpy arrays and goes to a `StepComputer`, which replays a recorded step or runs the
model over it; what comes out is a `LaunchedStep`, whose tokens are read when the next one was launched.
"""

from __future__ import annotations

import logging
import math
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path

import torch
from torch import Tensor

from rhizome_engine.attention.base import AttentionBackend
from rhizome_engine.attention.choose import make_attention, probe
from rhizome_engine.attention.paged_kv import PagedKV
from rhizome_engine.batch import Batch, StepOutput
from rhizome_engine.checkpoint.loader import load_checkpoint
from rhizome_engine.checkpoint.model_config import ModelConfig
from rhizome_engine.core.runner_protocol import LaunchedStep, StepCounts
from rhizome_engine.kernels.native.native_kernels import NativeKernels
from rhizome_engine.memory_size import MemorySize, format_bytes
from rhizome_engine.models.decoder import Decoder
from rhizome_engine.models.registry import family_of
from rhizome_engine.parallel.group import RankGroup
from rhizome_engine.parallel.shares import formats_of_rank, shares_of_rank
from rhizome_engine.runner.device import ready_device
from rhizome_engine.runner.first_kernels import MetaRunner, compile_first_kernels
from rhizome_engine.runner.host_memory import plan_host_pages, with_buffer
from rhizome_engine.runner.host_pages import HostPages
from rhizome_engine.runner.memory import agree_on_pages, available_bytes, plan_num_pages
from rhizome_engine.runner.numerics import choose_numerics
from rhizome_engine.runner.sizing import memory_needs
from rhizome_engine.runner.step_computer import StepComputer, why_not_recorded
from rhizome_engine.runner.steps import ThreadedStep
from rhizome_engine.start_times import StartTimes
from rhizome_engine.weights.choose import Quantization, StoredFormat, format_chooser
from rhizome_engine.weights.targets import format_summary

logger = logging.getLogger(__name__)


class ModelRunner:
    """Loads a checkpoint and computes steps.

    Args:
        model_path: a Hugging Face checkpoint directory.
        device: "auto", "cpu", "cuda" or "cuda:N".
        dtype: "auto", "float32", "bfloat16" or "float16", of weights.
        kv_cache_dtype: the same, of the KV pool.
        quantization: "int8", "fp8" or "int4": how weights are kept; "none" for as they are in the checkpoint.
        kernels: "auto", "native", "triton" or "torch".
        attention: "auto" or a back end's name.
        graphs: "auto" records steps on a GPU and replays them; "off" never; see `StepComputer`.
        page_size: tokens per KV page.
        num_pages: size of the KV pool; or
        kv_memory: the same in bytes, as "4GiB", or as "60%" of what is left beside weights and workspace;
            where neither is given, what is free decides.
        kv_host_memory: memory of the host tier of the prefix cache, over all ranks, as "8GiB", or as "50%" of
            what is left on the machine; None for no such tier.
        memory_share: part of the free memory to count on, where several engines share a machine.
        max_num_tokens: tokens of the largest step.
        max_num_rows: requests of the largest step.
        max_context_tokens: longest context that will be served; None for the checkpoint's.
        num_slots: requests that can hold pages at once; None for `max_num_rows`.
        num_threads: CPU threads of the matrix products; None leaves PyTorch's choice.
        overlap: on a CPU, compute in a thread, so that `launch` returns at once; a GPU does so anyway.
        progress: show how far loading is, on the terminal or in the log.
        times: told what the start spends its time on.
        group: the ranks that share the model with this one; None for a whole model.

    Attributes:
        checkpoint: what was loaded, with the recommended sampling settings and the ids that end a sequence.
        config: shape of the model.
        quantization: what quantised the weights, by our name or the checkpoint's; "" for nothing.
        num_pages: pages of the KV pool.
        num_host_pages: pages of the host tier.
        page_size: tokens per page.

    Raises:
        CheckpointError: the checkpoint cannot be served.
        KVBudgetError: weights and KV pool do not fit; the text holds the arithmetic.
        ValueError: a setting is unknown or out of range.
    """

    def __init__(
        self,
        model_path: str | Path,
        *,
        device: str = "auto",
        dtype: str = "auto",
        kv_cache_dtype: str = "auto",
        quantization: Quantization = "none",
        kernels: str = "auto",
        attention: str = "auto",
        graphs: str = "auto",
        page_size: int = 16,
        num_pages: int | None = None,
        kv_memory: str | int | None = None,
        kv_host_memory: str | int | None = None,
        memory_share: float = 1.0,
        max_num_tokens: int = 512,
        max_num_rows: int = 32,
        max_context_tokens: int | None = None,
        num_slots: int | None = None,
        num_threads: int | None = None,
        overlap: bool = False,
        progress: bool = False,
        times: StartTimes | None = None,
        group: RankGroup | None = None,
    ) -> None:
        times = times or StartTimes()
        for name, value in (
            ("page_size", page_size),
            ("max_num_tokens", max_num_tokens),
            ("max_num_rows", max_num_rows),
            ("max_context_tokens", max_context_tokens or 1),
        ):
            if value < 1:
                raise ValueError(f"{name} must be at least 1, not {value}")
        started = time.perf_counter()
        self.device = ready_device(device)
        times.done("device")
        self.checkpoint = load_checkpoint(model_path)
        self.config: ModelConfig = self.checkpoint.config
        if max_context_tokens is not None:  # it decides, too, which rotary factors "longrope" takes
            longest = min(max_context_tokens, self.config.max_position_embeddings)
            self.config = replace(self.config, max_position_embeddings=longest)
        weights = self.checkpoint.open_weights()
        names = family_of(self.config.architecture).names
        if self.config.tie_word_embeddings and weights.has_own_head(names.embedding, names.head):
            logger.info("%s: %s is stored and is not the embedding; it is used", model_path, names.head)
            self.config = replace(self.config, tie_word_embeddings=False)
        stored = "none" if weights.quantised is None else weights.quantised.quantization
        self.quantization = "" if weights.quantised is None else weights.quantised.name
        if quantization != "none":
            self.quantization = quantization
        self.numerics = choose_numerics(
            self.device,
            dtype=dtype,
            kv_dtype=kv_cache_dtype,
            kernels=kernels,
            quantization=stored if quantization == "none" else quantization,
            stored=weights.stored_dtype,
            num_threads=num_threads,
        )
        self.page_size = page_size
        self.max_num_tokens = max_num_tokens
        self.max_num_rows = max_num_rows
        num_slots = num_slots or max_num_rows
        records = why_not_recorded(graphs, self.device, self.config) is None
        stored_format: StoredFormat = weights.format_of
        if group is not None:
            shares = shares_of_rank(self.config, names, group.rank, group.size)
            stored_format = formats_of_rank(stored_format, shares)
        format_of = format_chooser(quantization, self.numerics.weight_dtype, names, stored_format)
        attention_choice = probe(
            attention,
            device=self.device,
            dtype=self.numerics.kv_dtype,
            page_size=page_size,
            head_dim=self.config.head_dim,
            native_kernels=isinstance(self.numerics.kernels, NativeKernels),
        )
        needs = memory_needs(
            self.config,
            names,
            self.numerics,
            format_of,
            num_tokens=max_num_tokens,
            num_rows=max_num_rows,
            page_size=page_size,
            in_place=attention_choice.in_place,
            group=group,
            recorded_slots=num_slots if records and attention_choice.in_place else 0,
        )
        host_size = None if kv_host_memory is None else MemorySize.parse(kv_host_memory)
        if host_size is not None:
            needs = with_buffer(needs)
        pages_per_context = math.ceil(self.config.max_position_embeddings / page_size)
        self.num_pages = agree_on_pages(
            group,
            lambda: plan_num_pages(
                needs,
                int(available_bytes(self.device) * memory_share),
                self.device,
                num_pages=num_pages,
                kv_memory=None if kv_memory is None else MemorySize.parse(kv_memory),
                # As many again as can be in use at once: the rest of the pool only caches prefixes.
                useful_pages=2 * max_num_rows * pages_per_context,
            ),
        )
        self.num_host_pages = plan_host_pages(
            needs, host_size, self.device, num_pages=self.num_pages, memory_share=memory_share, group=group
        )
        sizes = {"max_num_tokens": max_num_tokens, "max_num_rows": max_num_rows, "num_slots": num_slots}
        pages = {"num_pages": self.num_pages, "page_size": page_size}

        def meta_runner() -> MetaRunner:
            return MetaRunner(self.config, names, self.numerics, format_of, records=records, **pages, **sizes)

        compiling = compile_first_kernels(
            self.device, self.numerics, attention_choice.name, group, meta_runner
        )
        self.model = Decoder(self.config, names, self.numerics.kernels, format_of, group)
        times.done("config")
        weights.fill(self.model.targets, progress=progress)
        times.done("weights", weights.num_bytes)
        self.kv = PagedKV(
            num_layers=self.config.num_layers,
            **pages,
            num_kv_heads=self.model.config.num_kv_heads,
            head_dim=self.config.head_dim,
            dtype=self.numerics.kv_dtype,
            device=self.device,
        )
        times.done("KV pool")
        host = self._make_host_pages(times) if self.num_host_pages else None
        self.attention: AttentionBackend = make_attention(attention_choice, self.kv, self.model.ropes)
        self._computer = StepComputer(
            self.model,
            self.attention,
            self.kv,
            **sizes,
            max_context=min(self.config.max_position_embeddings, self.num_pages * page_size),
            graphs=graphs,
            host=host,
        )
        if compiling is not None:
            compiling.wait()
            times.done("kernels")
        in_thread = overlap and self.device.type == "cpu"
        self._thread = ThreadPoolExecutor(1, "model-runner") if in_thread else None
        logger.info(
            "loaded %s in %.1f s: %s, %s kernels (%s), weights %s, KV %s, attention %s, "
            "graphs %s, %d pages of %d",
            self.checkpoint.path,
            time.perf_counter() - started,
            self.device,
            self.numerics.kernels.name,
            self.numerics.reason,
            self.weights_name,
            self.numerics.kv_dtype,
            attention_choice,
            self._computer.graphs,
            self.num_pages,
            page_size,
        )

    def _make_host_pages(self, times: StartTimes) -> HostPages:
        started = time.perf_counter()
        host = HostPages(self.kv, self.num_host_pages)
        times.done("host tier")
        logger.info(
            "host tier: %d pages of %d, %s of the machine's memory, in %.1f s%s",
            self.num_host_pages,
            self.page_size,
            format_bytes(host.data.nbytes),
            time.perf_counter() - started,
            "; it is the pool's memory too, of which --kv-memory would make better use"
            if self.device.type == "cpu"
            else "",
        )
        return host

    @property
    def placement(self) -> str:
        """The devices that hold the model, for people."""
        return str(self.device)

    @property
    def weights_name(self) -> str:
        """How matrices are kept, the most frequent format first: "int8", "int4-g128, int8-g128"."""
        return format_summary(self.model.targets)

    @property
    def counts(self) -> StepCounts:
        """How steps were computed so far."""
        return self._computer.counts

    def launch(self, batch: Batch) -> LaunchedStep:
        """Begin a step; steps are computed in the order of their launch.

        Raises:
            ValueError: the batch is larger than what the buffers were made for.
        """
        if batch.num_tokens > self.max_num_tokens or batch.num_rows > self.max_num_rows:
            raise ValueError(
                f"the batch has {batch.num_tokens} tokens in {batch.num_rows} rows, but the runner was made "
                f"for at most {self.max_num_tokens} tokens in {self.max_num_rows} rows"
            )
        if self._thread is not None:
            return ThreadedStep(self._thread, lambda: self._computer.begin(batch))
        return self._computer.begin(batch)

    def run(self, batch: Batch) -> StepOutput:
        """Compute one step and wait for its tokens.

        Raises:
            ValueError: as for `launch`.
        """
        step = self.launch(batch)
        step.sample(None)
        return step.result()

    def use_idle_time(self) -> bool:
        """Record one kind of step that is wanted, while no step is under way; whether more are."""
        if self._thread is not None:
            return self._thread.submit(self._computer.use_idle_time).result()
        return self._computer.use_idle_time()

    def close(self) -> None:
        """End what computes beside this process; there is nothing where one process holds the model."""

    def hidden_states(self, batch: Batch) -> Tensor:
        """Write a step's keys and values and return [num_tokens, hidden_size]; never replayed."""
        return self._computer.hidden_states(batch)

    @torch.inference_mode()
    def logits(self, batch: Batch) -> Tensor:
        """Compute one step and return float32 [num_tokens, vocab_size] of all its tokens, for tests."""
        return self.model.logits(self.hidden_states(batch)).clone()
