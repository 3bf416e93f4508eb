"""`logprobs` of a completion: four lists side by side, written piece by piece."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import NamedTuple

import orjson

from rhizome.engine.v1.generate_pb2 import TokenLogprob
from rhizome_gateway.openai.objects import finite_logprob
from rhizome_gateway.tokenization.spelling import Spelling


class LogprobColumns(NamedTuple):
    """Some tokens, as JSON lists without their brackets; so that a long prompt's stay small, and join fast.

    Attributes:
        tokens: as text.
        token_logprobs: null for a token that nothing came before.
        top_logprobs: by token, the likeliest first and the token itself in any case; null as above.
        text_offset: characters before the token in the text of the choice.
    """

    tokens: bytes
    token_logprobs: bytes
    top_logprobs: bytes
    text_offset: bytes


class ScoredToken(NamedTuple):
    """A token, how likely it was, and where its text begins."""

    token_id: int
    logprob: TokenLogprob | None
    offset: int


def columns(tokens: Sequence[ScoredToken], spelled: Spelling) -> LogprobColumns:
    """Write some tokens."""
    return LogprobColumns(
        _items([spelled(token.token_id) for token in tokens]),
        _items([None if t.logprob is None else finite_logprob(t.logprob.logprob) for t in tokens]),
        _items([None if t.logprob is None else _top(t.token_id, t.logprob, spelled) for t in tokens]),
        _items([token.offset for token in tokens]),
    )


def logprobs_object(pieces: Iterable[LogprobColumns]) -> bytes:
    """The object, all pieces joined; of no tokens too."""
    joined = [b",".join(filter(None, parts)) for parts in zip(*pieces, strict=True)] or [b""] * 4
    fields = zip(LogprobColumns._fields, joined, strict=True)
    return b"{" + b",".join([b'"%b":[%b]' % (name.encode(), items) for name, items in fields]) + b"}"


def _top(token_id: int, logprob: TokenLogprob, spelled: Spelling) -> dict[str, float]:
    """Several tokens may be written alike; the likeliest of them is shown."""
    top: dict[str, float] = {}
    for rival in logprob.top:
        top.setdefault(spelled(rival.token_id), finite_logprob(rival.logprob))
    top.setdefault(spelled(token_id), finite_logprob(logprob.logprob))
    return top


def _items(values: Sequence[object]) -> bytes:
    return orjson.dumps(values)[1:-1]
