"""Checkpoints made on the spot, OTLP sink, process fixtures; only for tests."""
