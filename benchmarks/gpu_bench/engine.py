"""The engine core in this process, driven step by step as `LLM` drives it: no server, no messages."""

from __future__ import annotations

import random
import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from gpu_bench.bench import known_options
from gpu_bench.shapes import Work

if TYPE_CHECKING:
    from gpu_bench.bench import Bench

GREEDY_OUTPUT = 4


@dataclass(frozen=True)
class Wave:
    """When the tokens of streams came, in seconds from when all were submitted.

    Attributes:
        prompt_tokens: of all streams.
        tokens_s: [streams][tokens].
        token_ids: [streams][tokens], which ones.
    """

    prompt_tokens: int
    tokens_s: Sequence[Sequence[float]]
    token_ids: Sequence[Sequence[int]]

    @property
    def first_s(self) -> float:
        """When the last stream had its first token."""
        return max(times[0] for times in self.tokens_s)

    @property
    def end_s(self) -> float:
        """When the last token came."""
        return max(times[-1] for times in self.tokens_s)

    @property
    def output_tok_s(self) -> float:
        """Output tokens over all the time, prompts included."""
        return sum(map(len, self.tokens_s)) / self.end_s

    @property
    def decode_tok_s(self) -> float:
        """Tokens per second after every stream had its first."""
        later = sum(time_s > self.first_s for times in self.tokens_s for time_s in times)
        return later / max(self.end_s - self.first_s, 1e-9)


class Engine:
    """A model runner with a core on it.

    Args:
        bench: the device and the folder.
        model: name of the shape.
        max_step_tokens: of the largest step, for which buffers are made.
        max_batch_size: rows of the largest step.
        **options: of `ModelRunner`.

    Attributes:
        runner: computes.
        core: schedules; `new_core` replaces it.
        times: of the start.
        work: bytes and operations of the model.
    """

    def __init__(
        self,
        bench: Bench,
        model: str = "1b",
        *,
        max_step_tokens: int = 8192,
        max_batch_size: int = 256,
        num_pages: int | None = None,
        **options: Any,
    ) -> None:
        from rhizome_engine.runner import ModelRunner
        from rhizome_engine.scheduler.config import SchedulerConfig
        from rhizome_engine.start_times import StartTimes

        self._bench = bench
        if bench.smoke:
            max_step_tokens, max_batch_size, num_pages = 128, 8, 64
        shape = bench.shape(model)
        self.times = StartTimes()
        self.config = SchedulerConfig(
            max_batch_size=max_batch_size,
            max_queue_size=4096,
            max_step_tokens=max_step_tokens,
            max_partial_prefills=max_batch_size,
            max_tenant_slowdown=None,
            overlap=bench.on_gpu,
        )
        options = known_options(ModelRunner.__init__, times=self.times, **options)
        self.runner: Any = ModelRunner(
            bench.checkpoint(model),
            device=str(bench.device),
            num_pages=num_pages or 20_000,
            max_num_tokens=max_step_tokens,
            max_num_rows=max_batch_size,
            overlap=self.config.overlap,
            **options,
        )
        self.work = Work(shape, self.read_bytes(), self.runner.numerics.kv_dtype.itemsize)
        self._random = random.Random(1)
        self.new_core()

    def read_bytes(self) -> int:
        """What a decode step reads of the weights; of an embedding that is no output layer, nothing."""
        model = self.runner.model
        weights = {id(each.weight): each.weight for each in model.targets.matrices.values()}
        if model.head is not model.embedding:
            weights.pop(id(model.embedding.weight), None)
        return sum(int(weight.num_bytes) for weight in weights.values())

    def new_core(self, **changes: Any) -> None:
        """Begin with an empty cache, and other limits of the scheduler where some are given."""
        from rhizome_engine.core.engine_core import EngineCore

        self.core = EngineCore(self.runner, replace(self.config, **changes), ())

    def warm_up(self) -> None:
        """Answer as a core does before it serves."""
        from rhizome_engine.core.warm_up import warm_up

        warm_up(self.runner, self.config, 60 if not self._bench.smoke else 8)

    def record_graphs(self) -> int:
        """Let wanted graphs be recorded, as an idle engine does; how many calls that took."""
        use_idle_time = getattr(self.runner, "use_idle_time", None)
        calls = 0
        while use_idle_time is not None and calls < 200:
            calls += 1
            if not use_idle_time():
                break
        return calls

    def prompts(self, count: int, tokens: int) -> list[list[int]]:
        """Prompts of random tokens, other ones each time: the prefix cache must not help."""
        vocab_size = self.runner.config.vocab_size
        return [[self._random.randrange(vocab_size) for _ in range(tokens)] for _ in range(count)]

    def wave(self, prompts: Sequence[Sequence[int]], output_tokens: int, params: Any = None) -> Wave:
        """Submit prompts together and run them to their last token.

        Raises:
            EngineError: a request failed.
        """
        tokens_s: list[list[float]] = [[] for _ in prompts]
        token_ids: list[list[int]] = [[] for _ in prompts]
        began = time.perf_counter()
        for index, prompt in enumerate(prompts):
            self.submit(str(index), prompt, output_tokens, params)

        def take(name: str, ids: Sequence[int]) -> None:
            now = time.perf_counter() - began
            tokens_s[int(name)] += [now] * len(ids)
            token_ids[int(name)] += ids

        while self.core.has_work:
            self.step(take)
        return Wave(sum(map(len, prompts)), tokens_s, token_ids)

    def submit(self, name: str, prompt: Sequence[int], output_tokens: int, params: Any = None) -> None:
        """Queue a request, greedy unless said otherwise."""
        from rhizome_engine.sampling.params import SamplingParams
        from rhizome_engine.scheduler.request import Request

        params = params or SamplingParams(temperature=0.0)
        self.core.add(Request(name, list(prompt), params, max_tokens=output_tokens, ignore_eos=True))

    def step(self, take: Callable[[str, Sequence[int]], None]) -> None:
        """One step of the core.

        Raises:
            EngineError: a request failed.
        """
        from rhizome_engine.core.events import FailedEvent, TokensEvent

        for event in self.core.step():
            if isinstance(event, TokensEvent):
                take(event.request.request_id, list(event.token_ids))
            elif isinstance(event, FailedEvent):
                raise event.error

    def ready_for(self, streams: int, tokens: int, context: int = 0) -> None:
        """Run a short wave of the same shape, so that everything is compiled and recorded.

        Args:
            streams: that will be measured.
            tokens: of each prompt.
            context: length that the measured wave will reach.
        """
        output = GREEDY_OUTPUT if self._bench.smoke else 24  # recording begins after some use of a bucket
        self.wave(self.prompts(streams, tokens), output)
        self.record_graphs()
        self.wave(self.prompts(streams, tokens), GREEDY_OUTPUT)

    def best_wave(self, streams: int, tokens: int, output_tokens: int, repeat: int) -> Wave:
        """The wave of the median speed among a few."""
        waves = [self.wave(self.prompts(streams, tokens), output_tokens) for _ in range(repeat)]
        speed = statistics.median_low([wave.output_tok_s for wave in waves])
        return next(wave for wave in waves if wave.output_tok_s == speed)
