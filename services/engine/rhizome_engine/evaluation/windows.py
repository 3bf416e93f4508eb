"""Cuts a text into overlapping windows, so that tokens are predicted from a long context.

tokens   0 ........ C        window 1 scores all of its tokens
              S ........ S+C          window 2 only those after C
context C, stride S: every scored token but the first C has at least C - S tokens before it
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Window:
    """A prompt and which of its tokens are scored.

    Attributes:
        token_ids: the prompt.
        first_scored: index of the first scored token; all after it are scored as well. At least 1: a token
            with nothing before it cannot be predicted.
    """

    token_ids: list[int]
    first_scored: int


def sliding_windows(
    token_ids: Sequence[int], *, context: int, stride: int, bos_id: int | None = None
) -> Iterator[Window]:
    """Yield windows that score every token of a text once, but its first one where there is no `bos_id`.

    Args:
        token_ids: the text, without special tokens.
        context: tokens of a window, `bos_id` included.
        stride: tokens by which a window starts after the one before.
        bos_id: put before each window, for models that expect it; never scored.

    Raises:
        ValueError: windows would leave tokens out between them.
    """
    start_ids = [] if bos_id is None else [bos_id]
    room = context - len(start_ids)
    # Without BOS a window's first token is only context for the rest.
    most = room if start_ids else room - 1
    if not 1 <= stride <= most:
        raise ValueError(
            f"the stride must be between 1 and {most} for windows of {context} tokens, not {stride}"
        )
    scored_until = 0 if start_ids else 1
    for start in range(0, len(token_ids), stride):
        end = min(start + room, len(token_ids))
        if scored_until < end:
            yield Window([*start_ids, *token_ids[start:end]], max(1, scored_until - start + len(start_ids)))
        scored_until = end
        if end == len(token_ids):
            return
