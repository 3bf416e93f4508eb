"""transformers on the same checkpoint in the same run: eager, static cache, its continuous batching."""

from __future__ import annotations

import importlib.metadata
import statistics
import threading
import time
from collections.abc import Callable
from concurrent.futures import Future
from itertools import pairwise
from typing import Any

import torch
from gpu_bench.bench import Bench, SkipSection
from gpu_bench.plain_checkout import missing

BATCH, INPUT, OUTPUT = 32, 512, 64
STEPS = 48
WAY_S = 45.0
"""For each way; compiling takes most of it."""


def run(bench: Bench) -> None:
    """Measure what is there, each way on its own: one that fails or hangs leaves the others."""
    if missing(("transformers",)):
        raise SkipSection("transformers is not installed here")
    import transformers

    transformers.logging.set_verbosity_error()
    ours = _ours(bench)
    bench.drop_engine()
    bench.recorder.note(f"transformers {importlib.metadata.version('transformers')}, attention sdpa")
    network = transformers.AutoModelForCausalLM.from_pretrained(
        bench.checkpoint(), dtype=torch.bfloat16, attn_implementation="sdpa"
    )
    network = network.to(bench.device).eval()
    ways: list[tuple[str, Callable[[Bench, Any], dict[str, float]]]] = [
        ("eager", _eager),
        ("static cache", _static),
    ]
    if bench.on_gpu:
        ways += [("continuous batching", _continuous), ("static cache, compiled", _compiled)]
    for name, measure in ways:
        try:
            found = _within(WAY_S, lambda measure=measure: measure(bench, network))
        except TimeoutError:
            bench.recorder.note(f"transformers, {name}: not done within {WAY_S:.0f} s")
            return  # it still runs, beside whatever came next
        except Exception as error:  # a peer's trouble is told, and is not ours
            bench.recorder.note(f"transformers, {name}: {type(error).__name__}: {str(error)[:300]}")
            continue
        for figure, speed in found.items():
            bench.put(f"transformers_{figure}_tok_s", speed)
            own = next((value for end, value in ours.items() if figure.endswith(end)), None)
            if own:
                bench.put(f"times_transformers_{figure}", own / speed)


def _ours(bench: Bench) -> dict[str, float]:
    """The engine's speeds in the same minutes, by the end of the figures that they stand beside."""
    engine = bench.engine()
    batch, tokens, output, steps = _sizes(bench)
    prompt = 8 if bench.smoke else 128
    engine.ready_for(1, prompt)
    single = engine.best_wave(1, prompt, steps, repeat=1).decode_tok_s
    engine.ready_for(batch, tokens)
    wave = engine.best_wave(batch, tokens, output, repeat=1)
    bench.put("beside_transformers_1_stream_tok_s", single)
    bench.put("beside_transformers_32_tok_s", wave.output_tok_s)
    bench.put("beside_transformers_32_decode_tok_s", wave.decode_tok_s)
    return {"1_stream": single, "32_decode": wave.decode_tok_s, "32": wave.output_tok_s}


def _within(seconds: float, work: Callable[[], dict[str, float]]) -> dict[str, float]:
    """Do some work in a thread that may be left behind.

    Raises:
        TimeoutError: it is not done.
    """
    done: Future[dict[str, float]] = Future()

    def answer() -> None:
        try:
            done.set_result(work())
        except BaseException as error:
            done.set_exception(error)

    threading.Thread(target=answer, daemon=True).start()
    return done.result(seconds)


def _prompts(bench: Bench, count: int, tokens: int) -> torch.Tensor:
    generator = torch.Generator().manual_seed(5)
    ids = torch.randint(0, bench.shape().vocab_size, (count, tokens), generator=generator)
    return ids.to(bench.device)


def _sizes(bench: Bench) -> tuple[int, int, int, int]:
    return (2, 8, 4, 4) if bench.smoke else (BATCH, INPUT, OUTPUT, STEPS)


@torch.inference_mode()
def _steps(network: Any, ids: torch.Tensor, steps: int, cache: Any, bench: Bench) -> tuple[float, float]:
    """Seconds to the first token, and of a decode step."""
    bench.synchronize()
    began = time.perf_counter()
    times = []
    for _ in range(steps):
        output = network(ids, past_key_values=cache, use_cache=True, logits_to_keep=1)
        cache, ids = output.past_key_values, output.logits[:, -1].argmax(dim=-1, keepdim=True)
        ids.cpu()  # a server has to know each token
        times.append(time.perf_counter() - began)
    gaps = [later - earlier for earlier, later in pairwise(times[1:])]
    return times[0], statistics.median(gaps or [times[-1]])


def _eager(bench: Bench, network: Any) -> dict[str, float]:
    batch, tokens, _, steps = _sizes(bench)
    _steps(network, _prompts(bench, 1, tokens), 4, None, bench)
    _, step = _steps(network, _prompts(bench, 1, 128 if not bench.smoke else 8), steps, None, bench)
    found = {"eager_1_stream": 1 / step}
    first, step = _steps(network, _prompts(bench, batch, tokens), steps // 2, None, bench)
    return found | {"eager_32_decode": batch / step, "eager_32_prefill": batch * tokens / first}


def _static(bench: Bench, network: Any) -> dict[str, float]:
    """The static cache, not compiled."""
    _, _, _, steps = _sizes(bench)
    prompt = 8 if bench.smoke else 128
    cache = _static_cache(network, prompt + steps + 8)
    _, step = _steps(network, _prompts(bench, 1, prompt), steps, cache, bench)
    return {"static_eager_1_stream": 1 / step}


def _static_cache(network: Any, length: int) -> Any:
    from transformers import StaticCache

    return StaticCache(config=network.config, max_cache_len=length)


@torch.inference_mode()
def _compiled(bench: Bench, network: Any) -> dict[str, float]:
    """The static cache with the compiled forward, as its documentation advises; compiling is not counted."""
    steps, prompt = STEPS, 128
    compiled = torch.compile(network.forward, mode="reduce-overhead", fullgraph=False)
    cache = _static_cache(network, prompt + steps + 8)
    ids = _prompts(bench, 1, prompt)
    ids = network(ids, past_key_values=cache, use_cache=True, logits_to_keep=1).logits[:, -1].argmax(-1, True)
    times = []
    for place in range(prompt, prompt + steps):
        torch.compiler.cudagraph_mark_step_begin()
        position = torch.tensor([[place]], device=bench.device)
        output = compiled(ids.clone(), past_key_values=cache, position_ids=position, use_cache=True)
        ids = output.logits[:, -1].argmax(dim=-1, keepdim=True)
        ids.cpu()
        times.append(time.perf_counter())
    gaps = [later - earlier for earlier, later in pairwise(times[steps // 3 :])]
    return {"static_compiled_1_stream": 1 / statistics.median(gaps)}


def _continuous(bench: Bench, network: Any) -> dict[str, float]:
    from transformers import GenerationConfig

    batch, tokens, output, _ = _sizes(bench)
    config = GenerationConfig(max_new_tokens=output, do_sample=False, eos_token_id=-1, pad_token_id=0)
    speed = 0.0
    for _ in range(2):  # the first one warms up
        prompts = _prompts(bench, batch, tokens).tolist()
        began = time.perf_counter()
        results = network.generate_batch(inputs=prompts, generation_config=config)
        bench.synchronize()
        made = sum(len(result.generated_tokens) for result in results.values())
        speed = made / (time.perf_counter() - began)
    if made != batch * output:
        bench.recorder.note(f"transformers, continuous batching: {made} tokens instead of {batch * output}")
    return {"continuous_32": speed}
