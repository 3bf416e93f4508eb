"""The one error of this package."""

from __future__ import annotations


class CheckpointError(Exception):
    """A checkpoint cannot be served; the text says which file, what was expected and what to do."""
