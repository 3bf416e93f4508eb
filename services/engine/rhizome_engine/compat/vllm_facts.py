"""What vLLM's contract tells of a model, a server and its load, from what ours tell."""

from __future__ import annotations

import json
import time
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from smg_grpc_proto import vllm_engine_pb2 as vllm

from rhizome.engine.v1.engine_service_pb2 import GetModelInfoResponse
from rhizome.engine.v1.generate_pb2 import SamplingParams
from rhizome.engine.v1.load_pb2 import Load
from rhizome_text.tokenizer import Tokenizer

_SERVER_TYPE = "vllm-grpc"
"""By this, routers know the contract; it names no product."""


@dataclass(frozen=True, slots=True)
class ModelFacts:
    """What is known of the model without its core.

    Attributes:
        folder: of the checkpoint. A router that finds it on its own disk reads the tokenizer there.
        name: under which it is served.
        config: its `config.json`, read.
        config_json: the same as it is written.
        tokenizer: for its special tokens.
    """

    folder: Path
    name: str
    config: Mapping[str, Any]
    config_json: bytes
    tokenizer: Tokenizer

    @classmethod
    def read(cls, folder: Path, name: str, tokenizer: Tokenizer) -> ModelFacts:
        """Read the checkpoint's `config.json`.

        Raises:
            OSError: it is not there.
            ValueError: it is no JSON object.
        """
        path = folder / "config.json"
        written = path.read_bytes()
        try:
            config = json.loads(written)
        except ValueError as error:  # no UTF-8, too
            raise ValueError(f"{path} is no JSON: {error}") from None
        if not isinstance(config, dict):
            raise ValueError(f"{path} is no JSON object")
        return cls(folder, name, config, written, tokenizer)


def model_info(facts: ModelFacts, info: GetModelInfoResponse) -> vllm.GetModelInfoResponse:
    """What is served.

    Args:
        facts: of the checkpoint.
        info: from the core that serves it.
    """
    pad = facts.tokenizer.token_id(facts.tokenizer.special_tokens.get("pad_token"))
    return vllm.GetModelInfoResponse(
        model_path=str(facts.folder),
        tokenizer_path=str(facts.folder),
        served_model_name=facts.name,
        is_generation=True,
        max_context_length=info.max_context_tokens,
        max_req_input_len=info.max_context_tokens - 1,
        vocab_size=info.vocab_size,
        supports_vision=False,
        model_type=str(facts.config.get("model_type", "")),
        architectures=[info.architecture],
        eos_token_ids=info.eos_token_ids,
        pad_token_id=pad or 0,
        bos_token_id=facts.tokenizer.bos_id or 0,
        default_sampling_params_json=_as_json(info.default_sampling),
    )


def server_info(
    info: GetModelInfoResponse, load: Load, started: float, last_request: float, max_batch_size: int
) -> vllm.GetServerInfoResponse:
    """How the server is.

    Args:
        info: from the core that serves the model.
        load: of the core now.
        started: when this process began to serve, as Unix time.
        last_request: when the newest request came, likewise; 0 for none.
        max_batch_size: requests computed in one step.
    """
    return vllm.GetServerInfoResponse(
        active_requests=load.running_requests + load.waiting_requests,
        is_paused=False,
        last_receive_timestamp=last_request,
        uptime_seconds=max(0.0, time.time() - started),
        server_type=_SERVER_TYPE,
        data_parallel_size=1,
        kv_cache_dtype=info.kv_cache_dtype,
        block_size=info.page_size,
        attention_backend=info.attention_backend,
        model_dtype=info.dtype,
        max_num_seqs=max_batch_size,
    )


def loads(load: Load, version: str, max_batch_size: int) -> vllm.GetLoadsResponse:
    """How busy the one rank is.

    Args:
        load: of the core now.
        version: of the engine.
        max_batch_size: requests computed in one step.
    """
    pages, in_use, totals = load.kv_pages_total, load.kv_pages_in_use, load.totals
    looked_up = totals.cache_hit_tokens + totals.cache_miss_tokens
    rank = vllm.SchedulerLoad(
        dp_rank=0,
        num_running_reqs=load.running_requests,
        num_waiting_reqs=load.waiting_requests,
        num_total_reqs=load.running_requests + load.waiting_requests,
        num_used_tokens=in_use * load.page_size,
        max_total_num_tokens=pages * load.page_size,
        token_usage=in_use / pages if pages else 0.0,
        gen_throughput=load.generated_tokens_per_second,
        cache_hit_rate=totals.cache_hit_tokens / looked_up if looked_up else 0.0,
        utilization=min(1.0, load.running_requests / max_batch_size),
        max_running_requests=max_batch_size,
        num_waiting_uncached_tokens=load.waiting_tokens,
    )
    return vllm.GetLoadsResponse(
        timestamp=datetime.now(UTC).isoformat(), version=version, dp_rank_count=1, loads=[rank]
    )


def _as_json(sampling: SamplingParams) -> str:
    """What the checkpoint recommends and is not neutral; a router puts it into requests that say nothing."""
    neutral = {"temperature": 1.0, "top_p": 1.0, "top_k": 0, "min_p": 0.0, "repetition_penalty": 1.0}
    recommended = {name: getattr(sampling, name) for name in neutral}
    chosen = {name: value for name, value in recommended.items() if value != neutral[name]}
    # Single precision, written as the decimal number that somebody put into the file.
    return json.dumps(
        {name: float(f"{value:.7g}") if isinstance(value, float) else value for name, value in chosen.items()}
    )
