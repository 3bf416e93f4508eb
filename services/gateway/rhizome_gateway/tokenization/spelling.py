"""How single tokens are written in log probabilities."""

from __future__ import annotations

from typing import Protocol


class TokenBytes(Protocol):
    """Knows what tokens spell, as `Tokenizer` does."""

    def token_bytes(self, token_id: int) -> bytes:
        """The token's text in UTF-8, which may be a part of a character."""
        ...


class NumberedTokens:
    """Spells each token as its number, `token_id:42`, as vLLM does where it is asked to."""

    def token_bytes(self, token_id: int) -> bytes:
        """See `TokenBytes`."""
        return b"token_id:%d" % token_id


class Spelling:
    r"""Writes tokens as text, each worked out once.

    A token may be a part of a character only. It is written as OpenAI does it, `bytes:\xf0\x9f`, so that
    different tokens of that kind stay apart.

    Args:
        tokenizer: whose tokens.
    """

    def __init__(self, tokenizer: TokenBytes) -> None:
        self._tokenizer = tokenizer
        self._known: dict[int, str] = {}

    def __call__(self, token_id: int) -> str:
        """The token as text."""
        known = self._known.get(token_id)
        if known is None:
            known = self._known[token_id] = _spelled(self._tokenizer.token_bytes(token_id))
        return known


def _spelled(raw: bytes) -> str:
    try:
        return raw.decode()
    except UnicodeDecodeError:
        return "bytes:" + "".join(f"\\x{byte:02x}" for byte in raw)
