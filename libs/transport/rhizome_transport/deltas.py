"""Merging of token deltas, the one way in which events of a request may be compressed."""

from __future__ import annotations

from rhizome.engine.v1.generate_pb2 import GenerateResponse


def merge_delta(earlier: GenerateResponse, later: GenerateResponse) -> bool:
    """Append `later` to `earlier` if both are token deltas.

    Returns:
        Whether they were; otherwise nothing changed.
    """
    if not (earlier.HasField("delta") and later.HasField("delta")):
        return False
    target, source = earlier.delta, later.delta
    target.token_ids.extend(source.token_ids)
    if source.logprobs:
        target.logprobs.extend(source.logprobs)
    if source.text:
        target.text += source.text
    return True
