"""The model runner: owns the model, the KV tensors and the device; runs one step at a time."""

from __future__ import annotations

import logging
import math
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from rhizome_engine.attention.base import AttentionBackend, AttentionInputs
from rhizome_engine.attention.choose import choose_attention
from rhizome_engine.attention.paged_kv import PagedKV
from rhizome_engine.batch import Batch, StepOutput, TokenLogprobs, TokenMasks
from rhizome_engine.checkpoint.loader import load_checkpoint
from rhizome_engine.checkpoint.model_config import ModelConfig
from rhizome_engine.core.runner_protocol import LaunchedStep
from rhizome_engine.kernels.native.native_kernels import NativeKernels
from rhizome_engine.memory_size import MemorySize
from rhizome_engine.models.decoder import Decoder
from rhizome_engine.models.registry import family_of
from rhizome_engine.runner.device import choose_device
from rhizome_engine.runner.memory import available_bytes, plan_num_pages
from rhizome_engine.runner.numerics import choose_numerics
from rhizome_engine.runner.pooling import PooledSums
from rhizome_engine.runner.sizing import memory_needs
from rhizome_engine.runner.staging import StagedTokens, TokenStaging
from rhizome_engine.runner.steps import DeviceStep, ThreadedStep
from rhizome_engine.sampling.prompt_logprobs import score_prompt
from rhizome_engine.sampling.sampler import Sampled, sample
from rhizome_engine.sampling.token_table import TokenTable
from rhizome_engine.weights.choose import Quantization, format_chooser
from rhizome_engine.weights.targets import format_summary

logger = logging.getLogger(__name__)


class ModelRunner:
    """Loads a checkpoint and computes steps.

    Args:
        model_path: a Hugging Face checkpoint directory.
        device: "auto", "cpu", "cuda" or "cuda:N".
        dtype: "auto", "float32", "bfloat16" or "float16", of weights.
        kv_cache_dtype: the same, of the KV pool.
        quantization: "int8" or "int4": how weights are kept; "none" for as they are in the checkpoint.
        kernels: "auto", "native" or "torch".
        attention: "auto" or a back end's name.
        page_size: tokens per KV page.
        num_pages: size of the KV pool; or
        kv_memory: the same in bytes, as "4GiB", or as "60%" of what is left beside weights and workspace;
            where neither is given, what is free decides.
        memory_share: part of the free memory to count on, where several engines share a machine.
        max_num_tokens: tokens of the largest step.
        max_num_rows: requests of the largest step.
        max_context_tokens: longest context that will be served; None for the checkpoint's.
        num_slots: requests that can hold pages at once; None for `max_num_rows`.
        num_threads: CPU threads of the matrix products; None leaves PyTorch's choice.
        overlap: on a CPU, compute in a thread, so that `launch` returns at once; a GPU does so anyway.
        progress: show how far loading is, on the terminal or in the log.

    Attributes:
        checkpoint: what was loaded, with the recommended sampling settings and the ids that end a sequence.
        config: shape of the model.
        quantization: what quantised the weights, by our name or the checkpoint's; "" for nothing.
        num_pages: pages of the KV pool.
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
        page_size: int = 16,
        num_pages: int | None = None,
        kv_memory: str | int | None = None,
        memory_share: float = 1.0,
        max_num_tokens: int = 512,
        max_num_rows: int = 32,
        max_context_tokens: int | None = None,
        num_slots: int | None = None,
        num_threads: int | None = None,
        overlap: bool = False,
        progress: bool = False,
    ) -> None:
        for name, value in (
            ("page_size", page_size),
            ("max_num_tokens", max_num_tokens),
            ("max_num_rows", max_num_rows),
            ("max_context_tokens", max_context_tokens or 1),
        ):
            if value < 1:
                raise ValueError(f"{name} must be at least 1, not {value}")
        started = time.perf_counter()
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
        self.device = choose_device(device)
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
        format_of = format_chooser(quantization, self.numerics.weight_dtype, names, weights.format_of)
        needs = memory_needs(
            self.config,
            names,
            self.numerics,
            format_of,
            num_tokens=max_num_tokens,
            num_rows=max_num_rows,
            page_size=page_size,
            in_place=attention != "sdpa" and isinstance(self.numerics.kernels, NativeKernels),
        )
        pages_per_context = math.ceil(self.config.max_position_embeddings / page_size)
        self.num_pages = plan_num_pages(
            needs,
            int(available_bytes(self.device) * memory_share),
            self.device,
            num_pages=num_pages,
            kv_memory=None if kv_memory is None else MemorySize.parse(kv_memory),
            # As many again as can be in use at once: the rest of the pool only caches prefixes.
            useful_pages=2 * max_num_rows * pages_per_context,
        )
        self.model = Decoder(self.config, names, self.numerics.kernels, format_of)
        weights.fill(self.model.targets, progress=progress)
        self.kv = PagedKV(
            num_layers=self.config.num_layers,
            num_pages=self.num_pages,
            page_size=page_size,
            num_kv_heads=self.config.num_kv_heads,
            head_dim=self.config.head_dim,
            dtype=self.numerics.kv_dtype,
            device=self.device,
        )
        self.attention: AttentionBackend = choose_attention(
            attention, self.kv, self.model.ropes, self.numerics.kernels
        )
        self._staging = TokenStaging(max_num_tokens, self.device)
        max_context = min(self.config.max_position_embeddings, self.num_pages * page_size)
        self._tokens = TokenTable(num_slots or max_num_rows, max_context, self.device)
        self._pooled = PooledSums()
        in_thread = overlap and self.device.type == "cpu"
        self._thread = ThreadPoolExecutor(1, "model-runner") if in_thread else None
        logger.info(
            "loaded %s in %.1f s: %s, %s kernels (%s), weights %s, KV %s, attention %s, %d pages of %d",
            self.checkpoint.path,
            time.perf_counter() - started,
            self.device,
            self.numerics.kernels.name,
            self.numerics.reason,
            self.weights_name,
            self.numerics.kv_dtype,
            self.attention.name,
            self.num_pages,
            page_size,
        )

    @property
    def weights_name(self) -> str:
        """How matrices are kept, the most frequent format first: "int8", "int4-g128, int8-g128"."""
        return format_summary(self.model.targets)

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
            return ThreadedStep(self._thread, lambda: DeviceStep(self, batch))
        return DeviceStep(self, batch)

    def run(self, batch: Batch) -> StepOutput:
        """Compute one step and wait for its tokens.

        Raises:
            ValueError: as for `launch`.
        """
        step = self.launch(batch)
        step.sample(None)
        return step.result()

    @torch.inference_mode()
    def hidden_states(self, batch: Batch) -> Tensor:
        """Write a step's keys and values and return [num_tokens, hidden_size]."""
        for source, target, num_slots in batch.page_copies:
            self.kv.copy_page(source, target, num_slots)
        for slot, token_ids in batch.histories:
            self._tokens.load(slot, token_ids)
        staged: StagedTokens = self._staging.stage(batch)
        if len(batch.late):
            self._tokens.fill_late(staged.token_ids, staged.positions, batch.late, batch.late_slots)
        plan = self.attention.plan(
            AttentionInputs(
                staged.positions, staged.slot_mapping, batch.query_start, batch.context_len, batch.page_table
            )
        )
        return self.model.hidden_states(staged.token_ids, plan)

    @torch.inference_mode()
    def sample(self, hidden: Tensor, batch: Batch, masks: TokenMasks | None) -> Sampled:
        """Choose a token for every row that needs one; without waiting for it, on a GPU."""
        rows = batch.sampling.rows
        if len(rows) != batch.num_tokens:  # in a step of decodes only, every token is its row's last
            last = batch.query_start[rows + 1].astype(np.int64) - 1
            hidden = hidden.index_select(0, torch.from_numpy(last).to(self.device, non_blocking=True))
        return sample(self.model.logits(hidden), batch.sampling, self._tokens, masks)

    @torch.inference_mode()
    def score_prompts(self, hidden: Tensor, batch: Batch) -> list[list[TokenLogprobs]]:
        """Log probabilities of prompt tokens, one list per `Batch.prompt_scores`."""
        starts = batch.query_start
        return [
            score_prompt(hidden[starts[row] : starts[row] + len(targets)], self.model.logits, targets, top)
            for row, targets, top in batch.prompt_scores
        ]

    @torch.inference_mode()
    def pool(self, hidden: Tensor, batch: Batch) -> Tensor | None:
        """Take a step's hidden states into the vectors that are wanted; those that are complete.

        Must be called for every step that has `Batch.pooled`, in their order.

        Returns:
            [n, hidden_size] float32 on the device, one per row of `Batch.pooled` that ends; None without any.
        """
        return self._pooled.pool(hidden, batch, self.model.final_norm)

    @torch.inference_mode()
    def logits(self, batch: Batch) -> Tensor:
        """Compute one step and return float32 [num_tokens, vocab_size] of all its tokens, for tests."""
        return self.model.logits(self.hidden_states(batch)).clone()
