"""Transformers: a loop over the model's forward pass with its own cache, one batch of equal prompts.

`generate` itself is this loop with more Python around each step; the loop is the faster of the two.

    python transformers_peer.py CHECKPOINT [--dtype bfloat16] [--static]
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from pathlib import Path

import torch
import transformers
from transformers import AutoModelForCausalLM, StaticCache
from workload import TokenTimes, report, workload_of, workload_parser


class ForwardLoop:
    """One model; each call is a prefill of the batch and then a step per token."""

    def __init__(self, checkpoint: Path, dtype: torch.dtype, static: bool) -> None:
        self.model = AutoModelForCausalLM.from_pretrained(checkpoint, dtype=dtype).eval()
        self.static = static

    @torch.inference_mode()
    def __call__(self, prompts: Sequence[Sequence[int]], output_tokens: int) -> TokenTimes:
        """Generate greedily; all streams get a token at the same time."""
        cache = None
        times: list[float] = []
        arrival = time.perf_counter()
        tokens = torch.tensor(prompts)
        if self.static:
            cache = StaticCache(self.model.config, max_cache_len=tokens.shape[1] + output_tokens)
        for _ in range(output_tokens):
            output = self.model(tokens, past_key_values=cache, use_cache=True, logits_to_keep=1)
            cache = output.past_key_values
            tokens = output.logits[:, -1].argmax(dim=-1, keepdim=True)
            tokens.tolist()  # a caller wants the ids of every step
            times.append(time.perf_counter())
        return TokenTimes(arrival, [times] * len(prompts))


def main() -> None:
    """Load, measure, print one JSON line."""
    parser = workload_parser(__doc__ or "")
    parser.add_argument("--name", default="transformers")
    parser.add_argument("--dtype", default="float32", choices=("float32", "bfloat16", "float16"))
    parser.add_argument("--static", action="store_true", help="a cache of fixed length")
    arguments = parser.parse_args()
    workload = workload_of(arguments)
    torch.set_num_threads(workload.threads)
    model = ForwardLoop(workload.checkpoint, getattr(torch, arguments.dtype), arguments.static)
    versions = {"transformers": transformers.__version__, "torch": torch.__version__}
    report(arguments.name, versions, workload, model)


if __name__ == "__main__":
    main()
