"""Decisions of a router: which backend, when, and how often again. No I/O; clocks and chance are given."""
