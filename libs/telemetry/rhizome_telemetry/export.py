"""The tracer provider behind `configure_tracing`; imported only when spans are exported."""

from __future__ import annotations

from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
from opentelemetry.sdk.resources import Resource
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import BatchSpanProcessor, SpanExporter
from opentelemetry.sdk.trace.sampling import ParentBased

from rhizome_telemetry import semconv
from rhizome_telemetry.ids import UrandomIdGenerator
from rhizome_telemetry.random_ids import random_hex


def build_provider(service_name: str, exporter: SpanExporter | None = None) -> TracerProvider:
    """Make a provider whose spans go out in batches.

    It is not registered globally: a library that traces on its own keeps its own provider.

    Args:
        service_name: `service.name` of every span.
        exporter: where spans go; OTLP/HTTP as the environment says when absent.
    """
    resource = Resource.create(
        {semconv.SERVICE_NAME: service_name, semconv.SERVICE_INSTANCE_ID: random_hex(16)}
    )
    provider = TracerProvider(resource=resource, id_generator=UrandomIdGenerator(), shutdown_on_exit=False)
    provider.add_span_processor(BatchSpanProcessor(exporter or OTLPSpanExporter()))
    return provider


def follows_parents(provider: TracerProvider) -> bool:
    """Whether spans below one that was not sampled are never sampled: with every `parentbased_…` sampler."""
    return isinstance(provider.sampler, ParentBased)
