"""The model runner: owns the model, the KV tensors and the device; runs one step at a time."""

from __future__ import annotations

import logging
import math
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from rhizome_engine.attention.base import AttentionBackend, AttentionInputs
from rhizome_engine.attention.choose import choose_attention
from rhizome_engine.attention.paged_kv import PagedKV
from rhizome_engine.batch import Batch, StepOutput, TokenLogprobs, TokenMasks
from rhizome_engine.checkpoint import ModelConfig, load_checkpoint
from rhizome_engine.core.runner_protocol import LaunchedStep
from rhizome_engine.models.registry import CausalLM, build_model
from rhizome_engine.runner.device import choose_device, choose_dtype
from rhizome_engine.runner.memory import MemoryNeeds, available_bytes, plan_num_pages
from rhizome_engine.runner.staging import StagedTokens, TokenStaging
from rhizome_engine.runner.steps import DeviceStep, ThreadedStep
from rhizome_engine.sampling.prompt_logprobs import score_prompt
from rhizome_engine.sampling.sampler import Sampled, sample
from rhizome_engine.sampling.token_table import TokenTable

logger = logging.getLogger(__name__)


class ModelRunner:
    """Loads a checkpoint and computes steps.

    Args:
        model_path: a Hugging Face checkpoint directory.
        device: "auto", "cpu", "cuda" or "cuda:N".
        dtype: "auto", "float32", "bfloat16" or "float16", of weights and KV cache.
        attention: "auto" or a back end's name.
        page_size: tokens per KV page.
        num_pages: size of the KV pool; or
        kv_cache_bytes: the same in bytes; where neither is given, what is free decides.
        max_num_tokens: tokens of the largest step.
        max_num_rows: requests of the largest step.
        num_slots: requests that can hold pages at once; None for `max_num_rows`.
        num_threads: CPU threads of the matrix products; None leaves PyTorch's choice.
        overlap: on a CPU, compute in a thread, so that `launch` returns at once; a GPU does so anyway.

    Attributes:
        checkpoint: what was loaded, with the recommended sampling settings and the ids that end a sequence.
        config: shape of the model.
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
        attention: str = "auto",
        page_size: int = 16,
        num_pages: int | None = None,
        kv_cache_bytes: int | None = None,
        max_num_tokens: int = 512,
        max_num_rows: int = 32,
        num_slots: int | None = None,
        num_threads: int | None = None,
        overlap: bool = False,
    ) -> None:
        for name, value in (
            ("page_size", page_size),
            ("max_num_tokens", max_num_tokens),
            ("max_num_rows", max_num_rows),
        ):
            if value < 1:
                raise ValueError(f"{name} must be at least 1, not {value}")
        started = time.perf_counter()
        if num_threads is not None:
            torch.set_num_threads(num_threads)
        self.checkpoint = load_checkpoint(model_path)
        self.config: ModelConfig = self.checkpoint.config
        self.device = choose_device(device)
        self.dtype = choose_dtype(dtype, stored=self.config.dtype, device=self.device)
        self.page_size = page_size
        self.max_num_tokens = max_num_tokens
        self.max_num_rows = max_num_rows
        self.num_pages = self._plan_num_pages(num_pages, kv_cache_bytes)

        self.model: CausalLM = build_model(
            self.config.architecture, self.config, device=self.device, dtype=self.dtype
        )
        self.checkpoint.load_weights(self.model.weight_targets())
        self.kv = PagedKV(
            num_layers=self.config.num_layers,
            num_pages=self.num_pages,
            page_size=page_size,
            num_kv_heads=self.config.num_kv_heads,
            head_dim=self.config.head_dim,
            dtype=self.dtype,
            device=self.device,
        )
        self.attention: AttentionBackend = choose_attention(attention, self.kv)
        self._staging = TokenStaging(max_num_tokens, self.device)
        max_context = min(self.config.max_position_embeddings, self.num_pages * page_size)
        self._tokens = TokenTable(num_slots or max_num_rows, max_context, self.device)
        in_thread = overlap and self.device.type == "cpu"
        self._thread = ThreadPoolExecutor(1, "model-runner") if in_thread else None
        logger.info(
            "loaded %s in %.1f s: %s, %s, attention %s, %d KV pages of %d tokens",
            self.checkpoint.path,
            time.perf_counter() - started,
            self.device,
            self.dtype,
            self.attention.name,
            self.num_pages,
            page_size,
        )

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
            AttentionInputs(staged.slot_mapping, batch.query_start, batch.context_len, batch.page_table)
        )
        return self.model.hidden_states(staged.token_ids, staged.positions, plan)

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
    def logits(self, batch: Batch) -> Tensor:
        """Compute one step and return float32 [num_tokens, vocab_size] of all its tokens, for tests."""
        return self.model.logits(self.hidden_states(batch))

    def _plan_num_pages(self, num_pages: int | None, kv_cache_bytes: int | None) -> int:
        config, element_bytes = self.config, self.dtype.itemsize
        sizes = build_model(config.architecture, config, device=torch.device("meta"), dtype=self.dtype)
        # Per token at the widest point: residuals, projections, both halves of the MLP.
        attention_width = config.num_heads * config.head_dim
        widest = 4 * (config.hidden_size + attention_width) + 3 * config.intermediate_size
        # Logits of the sampled rows in float32, and about four temporaries of sampling.
        logits_bytes = self.max_num_rows * config.vocab_size * 4 * 6
        needs = MemoryNeeds(
            weights=sum(target.numel() * element_bytes for target in sizes.weight_targets().values()),
            workspace=self.max_num_tokens * widest * max(element_bytes, 4) + logits_bytes,
            page=config.kv_bytes_per_token(element_bytes) * self.page_size,
        )
        pages_per_context = math.ceil(config.max_position_embeddings / self.page_size)
        return plan_num_pages(
            needs,
            available_bytes(self.device),
            self.device,
            page_size=self.page_size,
            num_pages=num_pages,
            kv_cache_bytes=kv_cache_bytes,
            # As many again as can be in use at once: the rest of the pool only caches prefixes.
            useful_pages=2 * self.max_num_rows * pages_per_context,
        )
