"""vLLM: all of its load is on its page of metrics, for each of its engines."""

from __future__ import annotations

from typing import Final

from rhizome.engine.v1.load_pb2 import Load
from rhizome_backends.http_server import HttpBackend, load_of
from rhizome_telemetry.exposition import Sample, read_samples, total

_RUNNING: Final = "vllm:num_requests_running"
_WAITING: Final = "vllm:num_requests_waiting"
_USAGE: Final = "vllm:kv_cache_usage_perc"
_OLD_USAGE: Final = "vllm:gpu_cache_usage_perc"
_CACHE: Final = "vllm:cache_config_info"


def read_load(page: bytes) -> Load | None:
    """Sums over its engines, of which data parallelism makes several; each has a cache of the same size."""
    found = read_samples(page, _RUNNING, _WAITING, _USAGE, _OLD_USAGE, _CACHE)
    usages = found[_USAGE] or found[_OLD_USAGE]
    blocks, block_size = _cache(found[_CACHE])
    in_use = total(usages)
    return load_of(
        running_requests=total(found[_RUNNING]),
        waiting_requests=total(found[_WAITING]),
        kv_pages_total=blocks and blocks * max(1, len(usages)),
        kv_pages_in_use=None if in_use is None or blocks is None else in_use * blocks + 0.5,
        page_size=block_size,
    )


def _cache(infos: list[Sample]) -> tuple[float | None, float | None]:
    """Blocks of one engine, and tokens of one block; some versions write `None`."""
    for labels in map(Sample.labels, infos):
        try:
            return float(labels["num_gpu_blocks"]), float(labels["block_size"])
        except (KeyError, ValueError):
            continue
    return None, None


class VllmServer(HttpBackend):
    """A vLLM server."""

    kind = "vllm"
    sources = ((b"/metrics", read_load),)
