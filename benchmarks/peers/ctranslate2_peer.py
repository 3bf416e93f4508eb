"""CTranslate2: its batched generator, on a directory its converter wrote.

python ctranslate2_peer.py DIRECTORY
"""

from __future__ import annotations

import json
import time
from collections.abc import Sequence
from pathlib import Path

import ctranslate2
from workload import TokenTimes, report, workload_of, workload_parser


class Generator:
    """One generator; each call is one batch."""

    def __init__(self, directory: Path, threads: int, compute_type: str) -> None:
        self.generator = ctranslate2.Generator(
            str(directory), device="cpu", compute_type=compute_type, inter_threads=1, intra_threads=threads
        )
        self.vocabulary: list[str] = json.loads((directory / "vocabulary.json").read_text(encoding="utf-8"))

    def __call__(self, prompts: Sequence[Sequence[int]], output_tokens: int) -> TokenTimes:
        """Generate; a token's time is when the library's callback reports it."""
        times: list[list[float]] = [[] for _ in prompts]

        def note(step: ctranslate2.GenerationStepResult) -> bool:
            times[step.batch_id].append(time.perf_counter())
            return False

        texts = [[self.vocabulary[token] for token in prompt] for prompt in prompts]
        arrival = time.perf_counter()
        self.generator.generate_batch(
            texts,
            include_prompt_in_result=False,
            min_length=output_tokens,
            max_length=output_tokens,
            sampling_topk=1,
            callback=note,
        )
        return TokenTimes(arrival, times)


def main() -> None:
    """Load, measure, print one JSON line."""
    parser = workload_parser(__doc__ or "")
    parser.add_argument("--name", default="ctranslate2")
    parser.add_argument("--compute-type", default="int8")
    arguments = parser.parse_args()
    workload = workload_of(arguments)
    generator = Generator(workload.checkpoint, workload.threads, arguments.compute_type)
    report(arguments.name, {"ctranslate2": ctranslate2.__version__}, workload, generator)


if __name__ == "__main__":
    main()
