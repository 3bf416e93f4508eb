"""One request to a model, measured where its tokens arrive.

A histogram of Prometheus costs over a microsecond per value, and more where workers share it. So each choice
sorts its gaps into buckets of its own, and hands them over every few dozen arrivals and at its end.
"""

from __future__ import annotations

from bisect import bisect_left
from collections import deque
from collections.abc import Sequence
from functools import cache

from prometheus_client import CollectorRegistry, Counter, Histogram
from prometheus_client.metrics import MetricWrapperBase

from rhizome_gateway.generation.events import Ended
from rhizome_gateway.metrics.buckets import FIRST_TOKEN_S, GENERATION_S, INTER_TOKEN_S, MergingHistogram
from rhizome_gateway.metrics.tenants import TenantMeter
from rhizome_telemetry.semconv import PROVIDER_NAME

_TOKENS_PER_FLUSH = 32
_FIRST_TOKENS_KEPT = 2048
_OPERATION = ("gen_ai_operation_name", "gen_ai_provider_name", "gen_ai_request_model")


class GenerationInstruments:
    """What is counted about requests to models.

    Args:
        registry: where the families are registered.
    """

    def __init__(self, registry: CollectorRegistry) -> None:
        self.seconds = Histogram(
            "gen_ai_server_request_duration_seconds",
            "Seconds that a generation took, from the request's arrival; error_type is empty for a good end.",
            (*_OPERATION, "error_type"),
            buckets=GENERATION_S,
            registry=registry,
        )
        self.first_token_seconds = Histogram(
            "gen_ai_server_time_to_first_token_seconds",
            "Seconds from a request's arrival to its first token.",
            _OPERATION,
            buckets=FIRST_TOKEN_S,
            registry=registry,
        )
        self.seconds_per_token = Histogram(
            "gen_ai_server_time_per_output_token_seconds",
            "Mean seconds between the tokens of an answer, after its first.",
            _OPERATION,
            buckets=INTER_TOKEN_S,
            registry=registry,
        )
        self.gap_seconds = MergingHistogram(
            "rhizome_gateway_inter_token_latency_seconds",
            "Seconds between two arrivals of tokens for one answer.",
            ("model",),
            buckets=INTER_TOKEN_S,
            registry=registry,
        )

        def counter(name: str, text: str, *labels: str) -> Counter:
            return Counter(f"rhizome_gateway_{name}", text, ("model", *labels), registry=registry)

        self.prompt_tokens = counter("prompt_tokens", "Tokens in prompts.")
        self.cache_hit_tokens = counter("cache_hit_tokens", "Prompt tokens found in the prefix cache.")
        self.generated_tokens = counter("generated_tokens", "Tokens generated.")
        self.reasoning_tokens = counter("reasoning_tokens", "Generated tokens that were thinking.")
        self.answers = counter("answers", "Answers that ended, by why.", "finish_reason")

        self._of_models: dict[tuple[str, str], ModelInstruments] = {}
        self._first_tokens: deque[tuple[float, float]] = deque(maxlen=_FIRST_TOKENS_KEPT)

    def first_token(self, now: float, seconds: float) -> None:
        """Keep one time to the first token: a bucket of few values says little about them."""
        self._first_tokens.append((now, seconds))

    def first_tokens_since(self, began: float) -> list[float]:
        """Times to the first token, in seconds, of this process alone and not without end."""
        return [seconds for at, seconds in self._first_tokens.copy() if at >= began]

    @property
    def activity(self) -> Sequence[MetricWrapperBase]:
        """What rates and quantiles of the last moments are made of."""
        return self.seconds, self.first_token_seconds, self.gap_seconds, self.generated_tokens

    def of(self, operation: str, model: str) -> ModelInstruments:
        """Those of one operation of one model."""
        found = self._of_models.get((operation, model))
        if found is None:
            found = self._of_models[operation, model] = ModelInstruments(self, operation, model)
        return found


class ModelInstruments:
    """The instruments of one operation of one model: looking them up by label costs more than counting.

    Args:
        instruments: those of all.
        operation: OpenTelemetry's word: `chat`, `text_completion` or `embeddings`.
        model: the served name.
    """

    def __init__(self, instruments: GenerationInstruments, operation: str, model: str) -> None:
        self._all = instruments
        labels = (operation, PROVIDER_NAME, model)
        self.first_token_seconds = instruments.first_token_seconds.labels(*labels)
        self.seconds_per_token = instruments.seconds_per_token.labels(*labels)
        self.gap_seconds = instruments.gap_seconds.labels(model)
        self.prompt_tokens = instruments.prompt_tokens.labels(model)
        self.cache_hit_tokens = instruments.cache_hit_tokens.labels(model)
        self.generated_tokens = instruments.generated_tokens.labels(model)
        self.reasoning_tokens = instruments.reasoning_tokens.labels(model)
        # Bounded: errors and reasons are words of ours.
        self._seconds = cache(lambda error: instruments.seconds.labels(*labels, error))
        self._answers = cache(lambda reason: instruments.answers.labels(model, reason))

    def first_token(self, now: float, seconds: float) -> None:
        """The first token of a request arrived."""
        self.first_token_seconds.observe(seconds)
        self._all.first_token(now, seconds)

    def ended(self, error: str, seconds: float) -> None:
        """A request ended."""
        self._seconds(error).observe(seconds)

    def answered(self, finish_reason: str) -> None:
        """An answer ended."""
        self._answers(finish_reason).inc()


class GenerationMeter:
    """Measures one request, whatever number of choices it has. Times are those of `time.monotonic`.

    Args:
        instruments: where the numbers go.
        arrived: when the request arrived.
        tenant: whose it is, where tenants are counted.
    """

    __slots__ = ("_arrived", "_choices", "_closed", "_started", "_tenant", "generated_tokens", "instruments")

    def __init__(
        self, instruments: ModelInstruments, arrived: float, tenant: TenantMeter | None = None
    ) -> None:
        self.instruments = instruments
        self.generated_tokens = 0
        self._arrived = arrived
        self._tenant = tenant
        self._choices: list[ChoiceMeter] = []
        self._started = self._closed = False

    def choice(self) -> ChoiceMeter:
        """The meter of one more choice."""
        choice = ChoiceMeter(self)
        self._choices.append(choice)
        return choice

    def observe_first_token(self, now: float) -> None:
        """Tokens arrived; only the first of all choices count."""
        if not self._started:
            self._started = True
            self.instruments.first_token(now, now - self._arrived)

    def observe_prompts(self, prompt_tokens: int, cached_tokens: int = 0) -> None:
        """Prompts were taken: all their tokens, and those of them that the prefix cache held."""
        self.instruments.prompt_tokens.inc(prompt_tokens)
        self.instruments.cache_hit_tokens.inc(cached_tokens)
        if self._tenant is not None:
            self._tenant.prompt_tokens.inc(prompt_tokens)
            self._tenant.cache_hit_tokens.inc(cached_tokens)

    def close(self, now: float, error: str = "") -> None:
        """The request ended, in whatever way; what is said again is ignored.

        Args:
            now: when.
            error: code of the error that ended it, `cancelled` when the client left, empty for a good end.
        """
        if self._closed:
            return
        self._closed = True
        for choice in self._choices:
            choice.flush()
        self._choices = []  # they hold this meter: a circle would wait for the garbage collector
        self.instruments.ended(error, now - self._arrived)
        if self._tenant is not None:
            self._tenant.ended(error, self.generated_tokens)


class ChoiceMeter:
    """Measures one choice of a request.

    `observe_tokens` is called for each arrival, and costs well below a microsecond.

    Args:
        meter: the request's.
    """

    __slots__ = ("_counts", "_first", "_flushed", "_last", "_meter", "_tokens")

    def __init__(self, meter: GenerationMeter) -> None:
        self._meter = meter
        self._first = self._last = self._flushed = 0.0
        self._tokens = 0
        self._counts = [0] * (len(INTER_TOKEN_S) + 1)

    def observe_tokens(self, now: float, tokens: int) -> None:
        """Tokens arrived together.

        Args:
            now: when.
            tokens: how many.
        """
        last, self._last = self._last, now
        self._tokens = waiting = self._tokens + tokens
        if last:
            self._counts[bisect_left(INTER_TOKEN_S, now - last)] += 1
        else:
            self._first = self._flushed = now
            self._meter.observe_first_token(now)
        if waiting >= _TOKENS_PER_FLUSH:
            self.flush()

    def finish(self, ended: Ended) -> None:
        """The answer is complete."""
        self.flush()
        instruments = self._meter.instruments
        instruments.answered(ended.reason)
        if ended.reasoning_tokens:
            instruments.reasoning_tokens.inc(ended.reasoning_tokens)
        if ended.completion_tokens > 1 and self._last > self._first:
            mean_s = (self._last - self._first) / (ended.completion_tokens - 1)
            instruments.seconds_per_token.observe(mean_s)

    def flush(self) -> None:
        """Hand over what was gathered."""
        if not self._tokens:
            return
        instruments = self._meter.instruments
        instruments.generated_tokens.inc(self._tokens)
        self._meter.generated_tokens += self._tokens
        instruments.gap_seconds.merge(self._counts, self._last - self._flushed)
        self._counts = [0] * len(self._counts)
        self._flushed = self._last
        self._tokens = 0
