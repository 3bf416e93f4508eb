"""`rhizome bench serve`: one load level after the other."""

from __future__ import annotations

import asyncio
import random
import time
from collections.abc import Callable, Coroutine, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

from rhizome_launcher.bench.arrivals import arrival_times
from rhizome_launcher.bench.calibration import token_rate
from rhizome_launcher.bench.client import OpenAIClient
from rhizome_launcher.bench.figures import Figures, summarise
from rhizome_launcher.bench.load import Load
from rhizome_launcher.bench.records import RequestRecord
from rhizome_launcher.bench.slo import Slo
from rhizome_launcher.bench.workload import PromptFile, RandomWords, Workload
from rhizome_launcher.serve import StoppedEarlyError, unless_interrupted

T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class Level:
    """One load: either `concurrency` requests at a time, or `rate` requests per second."""

    concurrency: int | None = None
    rate: float | None = None

    @property
    def label(self) -> str:
        """As it is written in tables."""
        return f"{self.rate:g}/s" if self.concurrency is None else str(self.concurrency)

    def default_prompts(self) -> int:
        """Requests where the user does not say: four per stream, or half a minute of arrivals."""
        if self.concurrency is not None:
            return max(16, 4 * self.concurrency)
        return max(16, round(30 * (self.rate or 0)))


@dataclass(frozen=True, slots=True)
class ServeBenchSettings:
    """What to measure.

    Attributes:
        base_url: the server.
        levels: loads, one after the other.
        model: its name; empty asks the server.
        api_key: empty for none.
        endpoint: `chat` or `completions`.
        num_prompts: requests per level; None for `Level.default_prompts`.
        input_tokens, output_tokens: lengths wanted.
        shared_prefix_tokens: input tokens that all prompts have in common.
        warmup: requests before each level that are not counted.
        waves: closed loops wait for all streams before any of them sends again.
        burstiness: see `arrivals.arrival_times`.
        dataset: a JSONL file instead of random words.
        extra: fields added to every request.
        seed: of prompts and arrivals.
        slo: what makes a request good.
        timeout_s: for one answer.
    """

    base_url: str
    levels: tuple[Level, ...]
    model: str = ""
    api_key: str = ""
    endpoint: str = "chat"
    num_prompts: int | None = None
    input_tokens: int = 128
    output_tokens: int = 128
    shared_prefix_tokens: int = 0
    warmup: int = 2
    waves: bool = False
    burstiness: float = 1.0
    dataset: Path | None = None
    extra: Mapping[str, Any] = field(default_factory=dict)
    seed: int = 0
    slo: Slo | None = None
    timeout_s: float = 600.0


@dataclass(frozen=True, slots=True)
class LevelResult:
    """What one level came to; the records are kept for plots."""

    level: Level
    figures: Figures
    records: list[RequestRecord]


@dataclass(slots=True)
class ServeBenchResult:
    """What was measured, complete or up to an interrupt.

    Attributes:
        model: the model that answered.
        levels: results so far.
        tokens_per_word: of random words on this server; None for a data set, or where no usage is reported.
        interrupted: whether Ctrl-C ended it.
    """

    model: str
    levels: list[LevelResult] = field(default_factory=list)
    tokens_per_word: float | None = None
    interrupted: bool = False


class ServeBench:
    """Measures every level, and keeps what is there so far.

    Args:
        settings: what to measure.
        interrupted: once set, the measurement ends early.
        on_level: called before each level with its number of requests.
        on_record: called with every record that counts.
    """

    def __init__(
        self,
        settings: ServeBenchSettings,
        interrupted: asyncio.Event,
        *,
        on_level: Callable[[Level, int], None],
        on_record: Callable[[RequestRecord], None],
    ) -> None:
        self._settings = settings
        self._interrupted = interrupted
        self._on_level = on_level
        self._on_record = on_record
        self._chance = random.Random(settings.seed)  # noqa: S311
        self._result = ServeBenchResult(settings.model)
        self._client = OpenAIClient(
            settings.base_url,
            endpoint=settings.endpoint,
            api_key=settings.api_key,
            timeout_s=settings.timeout_s,
        )

    async def run(self) -> ServeBenchResult:
        """Measure; an interrupt returns what is there so far.

        Raises:
            BenchError: the server cannot be reached or refuses the first request; the data set is unusable.
        """
        async with self._client:
            try:
                if not self._result.model:
                    self._result.model = await self._unless_interrupted(self._client.first_model())
                workload = await self._unless_interrupted(self._workload())
                for level in self._settings.levels:
                    await self._run_level(level, workload)
            except StoppedEarlyError:
                self._result.interrupted = True
        return self._result

    async def _workload(self) -> Workload:
        settings = self._settings
        if settings.dataset is not None:
            return PromptFile(settings.dataset)
        rate = await token_rate(self._client, self._result.model, settings.extra)
        self._result.tokens_per_word = rate.per_word if rate.measured else None
        return RandomWords(
            rate,
            input_tokens=settings.input_tokens,
            shared_tokens=settings.shared_prefix_tokens,
            chance=self._chance,
        )

    async def _run_level(self, level: Level, workload: Workload) -> None:
        """Warm up, send, and put the figures into the result.

        Raises:
            StoppedEarlyError: an interrupt ended it; the figures so far are in the result.
        """
        settings = self._settings
        warmup = self._bodies(workload, settings.warmup)
        await self._unless_interrupted(
            Load(self._client).closed_loop(warmup, level.concurrency or len(warmup))
        )
        bodies = self._bodies(workload, settings.num_prompts or level.default_prompts())
        self._on_level(level, len(bodies))
        load = Load(self._client, self._on_record)
        cpu_before = time.process_time()
        try:
            await self._unless_interrupted(self._sending(load, level, bodies))
        finally:
            figures = summarise(
                load.records,
                unfinished=load.unfinished,
                slo=settings.slo,
                waves=load.waves if load.together else (),
                client_cpu_s=time.process_time() - cpu_before,
            )
            self._result.levels.append(LevelResult(level, figures, load.records))

    def _sending(self, load: Load, level: Level, bodies: list[bytes]) -> Coroutine[Any, Any, None]:
        if level.concurrency is None:
            assert level.rate is not None
            arrivals = arrival_times(level.rate, self._settings.burstiness, self._chance)
            return load.open_loop(bodies, arrivals)
        if self._settings.waves:
            return load.in_waves(bodies, level.concurrency)
        return load.closed_loop(bodies, level.concurrency)

    def _bodies(self, workload: Workload, count: int) -> list[bytes]:
        settings = self._settings
        prompts = [workload.next() for _ in range(count)]
        return [
            self._client.body(
                prompt.content,
                self._result.model,
                prompt.max_tokens or settings.output_tokens,
                settings.extra,
            )
            for prompt in prompts
        ]

    async def _unless_interrupted(self, work: Coroutine[Any, Any, T]) -> T:
        return await unless_interrupted(work, self._interrupted)
