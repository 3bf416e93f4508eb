"""How the hidden states of a prompt become one vector."""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum


class Pooling(Enum):
    """Which tokens count; hidden states are those after the final norm.

    MEAN        the mean over all tokens
    LAST_TOKEN  the last token's
    CLS         the first token's
    """

    MEAN = "mean"
    LAST_TOKEN = "last_token"  # noqa: S105 - a language model's token, not a secret
    CLS = "cls"

    @property
    def needs_every_token(self) -> bool:
        """Whether tokens before the last one count, so that cached keys and values are no substitute."""
        return self is not Pooling.LAST_TOKEN


@dataclass(frozen=True, slots=True)
class EmbeddingParams:
    """What a request for a vector wants.

    Attributes:
        pooling: which tokens count.
        normalize: scale the vector to length 1.
    """

    pooling: Pooling = Pooling.MEAN
    normalize: bool = True
