"""llama.cpp: its C interface, one sequence per stream and one batch per step, as its server decodes.

python llama_cpp_peer.py FILE.gguf [--flash-attention]
"""

from __future__ import annotations

import ctypes
import time
from collections.abc import Sequence
from pathlib import Path

import llama_cpp
import numpy as np
from workload import TokenTimes, Workload, report, workload_of, workload_parser

PHYSICAL_BATCH = 512  # prompt tokens computed at a time; the library's default


class BatchedDecoding:
    """One context; each call is a prefill of all prompts and then a batch per step."""

    def __init__(self, workload: Workload, flash_attention: bool) -> None:
        llama_cpp.llama_backend_init()
        file: Path = workload.checkpoint
        model = llama_cpp.llama_model_load_from_file(
            str(file).encode(), llama_cpp.llama_model_default_params()
        )
        if not model:
            raise SystemExit(f"{file} is no model that llama.cpp loads")
        params = llama_cpp.llama_context_default_params()
        params.n_seq_max = max(workload.streams)
        params.kv_unified = False
        params.n_ctx = params.n_seq_max * 256
        params.n_batch = max(PHYSICAL_BATCH, params.n_seq_max * workload.prompt_tokens)
        params.n_ubatch = PHYSICAL_BATCH
        params.n_threads = params.n_threads_batch = workload.threads
        params.flash_attn_type = 1 if flash_attention else 0
        self.context = llama_cpp.llama_init_from_model(model, params)
        self.vocab_size = llama_cpp.llama_vocab_n_tokens(llama_cpp.llama_model_get_vocab(model))
        self.batch = llama_cpp.llama_batch_init(params.n_batch, 0, 1)

    def decode(self, rows: Sequence[Sequence[int]], start: int) -> list[int]:
        """Compute equally many tokens of every sequence from `start`; the likeliest next token of each."""
        batch, last = self.batch, len(rows[0]) - 1
        batch.n_tokens = 0
        outputs: list[int] = []
        for sequence, row in enumerate(rows):
            for place, token in enumerate(row):
                index = batch.n_tokens
                batch.token[index] = token
                batch.pos[index] = start + place
                batch.n_seq_id[index] = 1
                batch.seq_id[index][0] = sequence
                batch.logits[index] = place == last
                if place == last:
                    outputs.append(index)
                batch.n_tokens += 1
        status = llama_cpp.llama_decode(self.context, batch)
        if status != 0:
            raise RuntimeError(f"llama_decode returned {status}")
        return [int(self.logits(index).argmax()) for index in outputs]

    def logits(self, index: int) -> np.ndarray:
        """Return a view of one output's logits, [vocab_size]."""
        pointer = llama_cpp.llama_get_logits_ith(self.context, index)
        return np.ctypeslib.as_array(ctypes.cast(pointer, ctypes.POINTER(ctypes.c_float)), (self.vocab_size,))

    def __call__(self, prompts: Sequence[Sequence[int]], output_tokens: int) -> TokenTimes:
        """Generate greedily; all streams get a token at the same time."""
        llama_cpp.llama_memory_clear(llama_cpp.llama_get_memory(self.context), False)
        times: list[float] = []
        rows, start = [list(prompt) for prompt in prompts], 0
        arrival = time.perf_counter()
        for _ in range(output_tokens):
            tokens = self.decode(rows, start)
            times.append(time.perf_counter())
            start += len(rows[0])
            rows = [[token] for token in tokens]
        return TokenTimes(arrival, [times] * len(prompts))


def main() -> None:
    """Load, measure, print one JSON line."""
    parser = workload_parser(__doc__ or "")
    parser.add_argument("--name", default="llama.cpp")
    parser.add_argument("--flash-attention", action="store_true")
    arguments = parser.parse_args()
    workload = workload_of(arguments)
    decoding = BatchedDecoding(workload, arguments.flash_attention)
    report(arguments.name, {"llama-cpp-python": llama_cpp.__version__}, workload, decoding)


if __name__ == "__main__":
    main()
