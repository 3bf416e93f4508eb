"""Many streams that start together, 512 tokens in and 256 out, beside what the ceilings allow for that."""

from __future__ import annotations

from gpu_bench.bench import Bench

STREAMS = (32, 128, 256)
INPUT, OUTPUT = 512, 256


def run(bench: Bench) -> None:
    """Measure."""
    engine = bench.engine()
    bandwidth, rate = bench.ceilings()
    tokens, output = (8, 4) if bench.smoke else (INPUT, OUTPUT)
    for streams in (2,) if bench.smoke else STREAMS:
        engine.ready_for(streams, tokens)
        wave = engine.best_wave(streams, tokens, output, repeat=1 if bench.smoke or streams > 32 else 2)
        floor = engine.work.floor_s(streams, tokens, output, bandwidth, rate)
        roof = streams * output / floor
        name = f"streams_{streams}"
        bench.put(f"{name}_tok_s", wave.output_tok_s)
        bench.put(f"{name}_roofline_tok_s", roof)
        bench.put(f"{name}_of_roofline_percent", 100 * wave.output_tok_s / roof)
        bench.put(f"{name}_decode_tok_s", wave.decode_tok_s)
        bench.put(f"{name}_decode_step_ms", 1e3 * streams / wave.decode_tok_s)
        bench.put(f"{name}_first_token_last_s", wave.first_s)
        middle = tokens + output / 2
        step = max(
            engine.work.step_bytes(streams, middle) / bandwidth,
            engine.work.step_flops(streams, middle) / rate,
        )
        bench.put(f"{name}_decode_of_roofline_percent", 100 * step * wave.decode_tok_s / streams)
