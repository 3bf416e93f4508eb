"""What ends an engine of several ranks."""

from __future__ import annotations


class RankLostError(Exception):
    """A rank ended, failed or got stuck; the others cannot go on without it."""


class RankRefusedError(ValueError):
    """A rank cannot serve what it was asked to, and never will."""
