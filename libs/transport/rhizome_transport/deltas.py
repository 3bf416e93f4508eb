"""Merging of events, the one way in which events of a request may be compressed."""

from __future__ import annotations

from rhizome.engine.v1.generate_pb2 import GenerateResponse


def merge_delta(earlier: GenerateResponse, later: GenerateResponse) -> bool:
    """Append `later` to `earlier` if both are token deltas, or both are log probabilities of the prompt.

    Returns:
        Whether they were; otherwise nothing changed.
    """
    if earlier.HasField("prompt_logprobs") and later.HasField("prompt_logprobs"):
        earlier.prompt_logprobs.logprobs.extend(later.prompt_logprobs.logprobs)
        return True
    if not (earlier.HasField("delta") and later.HasField("delta")):
        return False
    target, source = earlier.delta, later.delta
    target.token_ids.extend(source.token_ids)
    if source.logprobs:
        target.logprobs.extend(source.logprobs)
    if source.text:
        target.text += source.text
    return True
