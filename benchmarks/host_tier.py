"""What a host tier of the prefix cache brings: conversations that do not fit the KV pool.

    python benchmarks/host_tier.py [--device auto] [--model DIRECTORY] [--prompt-tokens 1024]
                                   [--conversations 12]

The pool holds a third of the conversations. Each of them comes back in turn, as in a chat with many users, so
that with least recently used first the pool never has the one that comes next. Both engines are asked in the
same minutes, in turn; what is told is the median of the time to the first token of the second and later
rounds, and how many prompt tokens were computed.

Without `--model` it is a made-up Llama of 135M parameters. On a CPU both tiers are the same memory, so the
figures there only show what computing costs against copying; a larger pool would do the same.
"""

from __future__ import annotations

import argparse
import json
import statistics
import tempfile
import time
from pathlib import Path

import torch

from rhizome_engine.core.engine_core import EngineCore
from rhizome_engine.core.events import FailedEvent, TokensEvent
from rhizome_engine.runner import ModelRunner
from rhizome_engine.sampling.params import SamplingParams
from rhizome_engine.scheduler.config import SchedulerConfig
from rhizome_engine.scheduler.request import Request
from rhizome_testing.checkpoints import LlamaShape, write_llama_checkpoint

PAGE_SIZE = 16
ANSWER_TOKENS = 4
SHAPE = LlamaShape(
    vocab_size=49_152,
    hidden_size=576,
    intermediate_size=1536,
    num_hidden_layers=30,
    num_attention_heads=9,
    num_key_value_heads=3,
    max_position_embeddings=8192,
)
GREEDY = SamplingParams(temperature=0.0)


class Engine:
    """A core with a pool that is too small, and perhaps a host tier.

    Args:
        model: a checkpoint.
        device: where it computes.
        num_pages: of the pool.
        host_memory: bytes of the host tier, None for none.
    """

    def __init__(self, model: Path, device: str, num_pages: int, host_memory: int | None = None) -> None:
        config = SchedulerConfig(max_batch_size=4, overlap=device != "cpu")
        self.runner = ModelRunner(
            model,
            device=device,
            page_size=PAGE_SIZE,
            num_pages=num_pages,
            kv_host_memory=host_memory,
            max_num_tokens=config.max_step_tokens,
            max_num_rows=config.max_batch_size,
            num_slots=config.num_slots,
            overlap=config.overlap,
        )
        self.core = EngineCore(self.runner, config, num_host_pages=self.runner.num_host_pages)
        self.asked = 0

    def first_token_s(self, prompt: list[int]) -> float:
        """Ask, and wait for the end; seconds to the first token."""
        self.asked += 1
        self.core.add(Request(str(self.asked), prompt, GREEDY, max_tokens=ANSWER_TOKENS, ignore_eos=True))
        started, first = time.perf_counter(), 0.0
        while self.core.has_work:
            for event in self.core.step():
                if isinstance(event, FailedEvent):
                    raise event.error
                if isinstance(event, TokensEvent) and not first:
                    first = time.perf_counter() - started
        return first


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--device", default="auto")
    parser.add_argument("--model", type=Path)
    parser.add_argument("--prompt-tokens", type=int, default=1024)
    parser.add_argument("--conversations", type=int, default=12)
    parser.add_argument("--rounds", type=int, default=3)
    options = parser.parse_args()
    device = options.device
    if device == "auto":
        device = "cuda" if torch.cuda.is_available() else "cpu"
    with tempfile.TemporaryDirectory() as folder:
        model = options.model or write_llama_checkpoint(Path(folder) / "model", SHAPE)
        print(json.dumps(measure(model, device, options), indent=2))


def measure(model: Path, device: str, options: argparse.Namespace) -> dict[str, object]:
    """Both engines over the same conversations."""
    per_conversation = -(-(options.prompt_tokens + ANSWER_TOKENS) // PAGE_SIZE) + 1
    all_pages = per_conversation * options.conversations
    num_pages = max(all_pages // 3, 2 * per_conversation)
    without = Engine(model, device, num_pages)
    page_bytes = without.runner.kv.data.nbytes // num_pages
    engines = {"without": without, "with": Engine(model, device, num_pages, 2 * all_pages * page_bytes)}
    vocab = without.runner.config.vocab_size
    prompts = [
        [(7919 * number + 31 * place) % vocab for place in range(options.prompt_tokens)]
        for number in range(options.conversations)
    ]
    times: dict[str, list[float]] = {name: [] for name in engines}
    for round_ in range(options.rounds):
        for prompt in prompts:
            for name, engine in engines.items():
                taken = engine.first_token_s(prompt)
                if round_:
                    times[name].append(taken)
    told: dict[str, object] = {
        "device": str(engines["with"].runner.device),
        "conversations": options.conversations,
        "prompt_tokens": options.prompt_tokens,
        "pool_tokens": num_pages * PAGE_SIZE,
    }
    for name, engine in engines.items():
        totals = engine.core.load().totals
        told[f"first_token_ms_{name}"] = round(1e3 * statistics.median(times[name]), 2)
        told[f"computed_prompt_tokens_{name}"] = totals.cache_miss_tokens
        told[f"loaded_tokens_{name}"] = totals.host_loaded_tokens
    told["times_faster"] = round(statistics.median(times["without"]) / statistics.median(times["with"]), 1)
    return told


if __name__ == "__main__":
    main()
