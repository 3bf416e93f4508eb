"""Trace and span ids from the operating system's randomness, for the SDK; see `random_ids`."""

from __future__ import annotations

import os

from opentelemetry.sdk.trace.id_generator import IdGenerator


class UrandomIdGenerator(IdGenerator):
    """What the tracer provider asks for ids."""

    def generate_trace_id(self) -> int:
        """128 random bits, never zero."""
        return int.from_bytes(os.urandom(16)) or 1

    def generate_span_id(self) -> int:
        """64 random bits, never zero."""
        return int.from_bytes(os.urandom(8)) or 1

    def is_trace_id_random(self) -> bool:
        """All bits are random, which the trace flags may say."""
        return True
