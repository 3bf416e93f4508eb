"""What endpoint pickers scrape: vLLM's names, read back by our own reader of vLLM's metrics."""

from __future__ import annotations

from typing import Any

import grpc
import httpx

from rhizome.engine.v1.engine_service_pb2 import GetLoadRequest
from rhizome.engine.v1.engine_service_pb2_grpc import EngineServiceStub
from rhizome_backends.vllm import read_load
from rhizome_telemetry.exposition import Sample, read_samples
from rhizome_testing.engine_process import EngineProcess
from rhizome_testing.hash_core import token_request

NAMES = (
    "vllm:num_requests_waiting",
    "vllm:num_requests_running",
    "vllm:kv_cache_usage_perc",
    "vllm:cache_config_info",
    "vllm:lora_requests_info",
)


def test_a_picker_finds_every_name_and_the_numbers_are_the_engines(
    engine: EngineProcess, metrics_url: str
) -> None:
    with grpc.insecure_channel(engine.target) as channel:
        stub: Any = EngineServiceStub(channel)
        call = stub.Generate(token_request(list(range(10, 60)), max_tokens=1500))
        next(call)  # it runs
        busy = httpx.get(metrics_url).content
        call.cancel()
        ours = stub.GetLoad(GetLoadRequest()).load
    found = read_samples(busy, *NAMES)
    assert {name for name in NAMES if found[name]} == {*NAMES}
    load = read_load(busy)
    assert load is not None
    assert load.running_requests + load.waiting_requests == 1
    assert 0 < load.kv_pages_in_use <= load.kv_pages_total == ours.kv_pages_total == 512
    assert load.page_size == ours.page_size
    (cache,) = map(Sample.labels, found["vllm:cache_config_info"])
    assert (cache["block_size"], cache["num_gpu_blocks"]) == ("16", "512")
    (adapters,) = map(Sample.labels, found["vllm:lora_requests_info"])
    assert adapters["running_lora_adapters"] == adapters["waiting_lora_adapters"] == ""
