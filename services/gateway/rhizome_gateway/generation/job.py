"""The last part of every generating route: admission, spans, the generation itself, and the bill."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass

from rhizome_gateway.auth.caller import caller_of
from rhizome_gateway.errors import ApiError
from rhizome_gateway.generation.lane import PlannedChoice
from rhizome_gateway.generation.response import Generation
from rhizome_gateway.generation.summary import Summary
from rhizome_gateway.generation.writer import Rendering
from rhizome_gateway.http.exchange import Exchange
from rhizome_gateway.runtime import Runtime
from rhizome_gateway.schema.sampling import SamplingFields
from rhizome_gateway.served_model import ServedModel
from rhizome_telemetry import semconv
from rhizome_telemetry.asgi import SCOPE_KEY
from rhizome_telemetry.propagation import to_proto
from rhizome_telemetry.tracing import Span, SpanKind, start_span


@dataclass(frozen=True, slots=True)
class Job:
    """One request, checked and planned.

    Attributes:
        operation: OpenTelemetry's word for it: `chat` or `text_completion`.
        served: the model.
        model: its name, as the client asked for it.
        response_id: names the response.
        sampling: what the client asked for, for the span.
        max_tokens: most tokens of one answer, where the client said so.
        choices: in order of their index.
        choices_per_prompt: so many choices in a row share a prompt.
        rendering: how the API shows it.
        stream: send pieces as they come.
        arrived: when the request came, by `time.monotonic`.
    """

    operation: str
    served: ServedModel
    model: str
    response_id: str
    sampling: SamplingFields
    max_tokens: int | None
    choices: Sequence[PlannedChoice]
    choices_per_prompt: int
    rendering: Rendering
    stream: bool
    arrived: float


async def run_job(runtime: Runtime, exchange: Exchange, job: Job) -> None:
    """Reserve tokens, generate, send, and account for what was used.

    Raises:
        ApiError: before anything was sent.
    """
    settings = runtime.settings
    assert exchange.permit is not None
    permit = exchange.permit
    permit.reserve(
        sum(planned.request.prompt_tokens for planned in job.choices[:: job.choices_per_prompt]),
        (job.max_tokens or 0) * len(job.choices),
    )
    tenant = caller_of(exchange.scope).tenant_name
    meter = runtime.metrics.generation(job.operation, job.served.info.model, job.arrived, tenant)
    error = "cancelled"
    parent = exchange.scope.get(SCOPE_KEY)
    try:
        with start_span(
            f"{job.operation} {job.served.info.model}",
            kind=SpanKind.CLIENT,
            parent=parent.trace_parent if isinstance(parent, Span) else None,
        ) as span:
            if span.recording:
                _describe_request(span, job)
            generation = Generation(
                exchange,
                runtime.session.client,
                job.choices,
                job.rendering,
                stream=job.stream,
                choices_per_prompt=job.choices_per_prompt,
                keep_alive_s=settings.keep_alive_s,
                stalled_s=settings.stalled_s,
                timeout_s=settings.request_timeout_s,
                trace=to_proto(span.trace_parent, exchange.request_id),
                meter=meter,
            )
            try:
                error = await generation.run()
            except ApiError as failure:
                error = failure.code or "error"
                raise
            finally:
                permit.settle(generation.tokens)
                meter.observe_prompts(generation.summary.prompt_tokens, generation.summary.cached_tokens)
                if span.recording:
                    _describe_response(span, generation.summary)
            if error:
                span.end("cancelled" if error == "cancelled" else "error")
    finally:
        meter.close(time.monotonic(), error)


def _describe_request(span: Span, job: Job) -> None:
    sampling = job.sampling
    span.set_attributes(
        {
            semconv.GEN_AI_OPERATION_NAME: job.operation,
            semconv.GEN_AI_PROVIDER_NAME: semconv.PROVIDER_NAME,
            semconv.GEN_AI_REQUEST_MODEL: job.model,
            semconv.GEN_AI_REQUEST_MAX_TOKENS: job.max_tokens,
            semconv.GEN_AI_REQUEST_TEMPERATURE: sampling.temperature,
            semconv.GEN_AI_REQUEST_TOP_P: sampling.top_p,
            semconv.GEN_AI_REQUEST_TOP_K: sampling.top_k,
            semconv.GEN_AI_REQUEST_SEED: sampling.seed,
            semconv.GEN_AI_REQUEST_FREQUENCY_PENALTY: sampling.frequency_penalty,
            semconv.GEN_AI_REQUEST_PRESENCE_PENALTY: sampling.presence_penalty,
            semconv.GEN_AI_REQUEST_STREAM: job.stream,
            semconv.GEN_AI_REQUEST_CHOICE_COUNT: len(job.choices) if len(job.choices) > 1 else None,
            semconv.GEN_AI_RESPONSE_ID: job.response_id,
            semconv.GEN_AI_RESPONSE_MODEL: job.served.info.model,
        }
    )


def _describe_response(span: Span, summary: Summary) -> None:
    if summary.ended:
        span.set_attributes(
            {
                semconv.GEN_AI_RESPONSE_FINISH_REASONS: summary.finish_reasons,
                semconv.GEN_AI_USAGE_INPUT_TOKENS: summary.prompt_tokens,
                semconv.GEN_AI_USAGE_OUTPUT_TOKENS: summary.completion_tokens,
                semconv.GEN_AI_USAGE_CACHE_READ_INPUT_TOKENS: summary.cached_tokens,
            }
        )
