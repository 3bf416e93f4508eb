"""How single tokens are written in log probabilities."""

from __future__ import annotations

from rhizome_text.tokenizer import Tokenizer


class Spelling:
    r"""Writes tokens as text, each worked out once.

    A token may be a part of a character only. It is written as OpenAI does it, `bytes:\xf0\x9f`, so that
    different tokens of that kind stay apart.

    Args:
        tokenizer: whose tokens.
    """

    def __init__(self, tokenizer: Tokenizer) -> None:
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
