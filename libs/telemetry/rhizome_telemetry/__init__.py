"""Logging, tracing and propagation for Rhizome's services."""
