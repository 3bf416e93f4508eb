"""OpenVINO GenAI: its continuous batching, as its model server uses it, on an exported model directory.

python openvino_genai_peer.py DIRECTORY [--properties '{"KV_CACHE_PRECISION": "f32"}']
"""

from __future__ import annotations

import json
import time
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import openvino
import openvino_genai
from workload import TokenTimes, report, workload_of, workload_parser


class ContinuousBatching:
    """One pipeline; each call steps it until all streams have ended."""

    def __init__(self, directory: Path, scheduling: dict[str, object], properties: dict[str, object]) -> None:
        config = openvino_genai.SchedulerConfig()
        for name, value in scheduling.items():
            setattr(config, name, value)
        self.pipeline = openvino_genai.ContinuousBatchingPipeline(str(directory), config, "CPU", properties)

    def __call__(self, prompts: Sequence[Sequence[int]], output_tokens: int) -> TokenTimes:
        """Generate; a token's time is the end of the step that made it."""
        config = openvino_genai.GenerationConfig()
        config.max_new_tokens = output_tokens
        config.min_new_tokens = output_tokens
        config.ignore_eos = True
        config.do_sample = False
        times: list[list[float]] = [[] for _ in prompts]
        tensors = [openvino.Tensor(np.array([prompt], dtype=np.int64)) for prompt in prompts]
        arrival = time.perf_counter()
        handles = [self.pipeline.add_request(row, tensor, config) for row, tensor in enumerate(tensors)]
        while self.pipeline.has_non_finished_requests():
            self.pipeline.step()
            now = time.perf_counter()
            for handle, stream in zip(handles, times, strict=True):
                while handle.can_read():
                    for output in handle.read().values():
                        stream.extend([now] * len(output.generated_ids))
        return TokenTimes(arrival, times)


def main() -> None:
    """Load, measure, print one JSON line."""
    parser = workload_parser(__doc__ or "")
    parser.add_argument("--name", default="openvino-genai")
    parser.add_argument("--cache-gib", type=int, default=1)
    parser.add_argument("--batched-tokens", type=int, default=4096, help="prompt tokens of one step at most")
    parser.add_argument("--split-fuse", action="store_true", help="prefill and decode in one step")
    parser.add_argument("--properties", type=json.loads, default={}, help="more CPU plugin properties")
    arguments = parser.parse_args()
    workload = workload_of(arguments)
    properties = {
        "PERFORMANCE_HINT": "LATENCY",
        "INFERENCE_NUM_THREADS": workload.threads,
        **arguments.properties,
    }
    scheduling = {
        "cache_size": arguments.cache_gib,
        "max_num_batched_tokens": arguments.batched_tokens,
        "dynamic_split_fuse": arguments.split_fuse,
        "enable_prefix_caching": False,
    }
    pipeline = ContinuousBatching(workload.checkpoint, scheduling, properties)
    versions = {"openvino": openvino.__version__, "openvino_genai": openvino_genai.__version__}
    report(arguments.name, versions, workload, pipeline)


if __name__ == "__main__":
    main()
