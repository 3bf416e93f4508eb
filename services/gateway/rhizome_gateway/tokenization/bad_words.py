"""Words that must not come out, as the sequences of tokens that the engine does not choose."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence

from rhizome_gateway.errors import ApiError
from rhizome_text.tokenizer import Tokenizer

MAX_WORD_CHARS = 4096
"""Of one word; 64 tokens hold no more of what anybody writes."""
MAX_WORD_TOKENS = 64
MAX_SEQUENCES = 1024
MAX_TOKENS = 4096
"""The engine's, as are the two above."""

_INLINE_CHARS = 2048


async def bad_sequences(tokenizer: Tokenizer, words: Sequence[str] | None) -> list[list[int]]:
    """Each word at the start of a text and after a space; off the event loop where it takes long.

    Raises:
        ApiError: 400; a word is empty or has too many tokens, or all of them have.
    """
    if not words:
        return []
    if not all(map(str.strip, words)):
        raise _refusal("bad_words must not be empty or only spaces: they would ban every text.")
    if max(map(len, words)) > MAX_WORD_CHARS:
        raise _refusal(f"bad_words may have {MAX_WORD_CHARS} characters each at most.")
    bare = dict.fromkeys(word.lstrip() for word in words)
    spellings = [spelling for word in bare for spelling in (word, f" {word}")]
    if sum(map(len, spellings)) <= _INLINE_CHARS:
        encoded = _encoded(tokenizer, spellings)
    else:
        encoded = await asyncio.to_thread(_encoded, tokenizer, spellings)
    # Some tokenizers put a space before every text themselves: both spellings are one then.
    sequences = [list(ids) for ids in dict.fromkeys(map(tuple, encoded)) if ids]
    if any(len(ids) > MAX_WORD_TOKENS for ids in sequences):
        raise _refusal(f"bad_words may have {MAX_WORD_TOKENS} tokens each at most.")
    if len(sequences) > MAX_SEQUENCES or sum(map(len, sequences)) > MAX_TOKENS:
        raise _refusal(
            f"bad_words may be {MAX_SEQUENCES} spellings of {MAX_TOKENS} tokens together at most, with and "
            "without a space before each word."
        )
    return sequences


def _encoded(tokenizer: Tokenizer, texts: Sequence[str]) -> list[list[int]]:
    return [tokenizer.encode(text) for text in texts]


def _refusal(message: str) -> ApiError:
    return ApiError(400, message, code="invalid_value", param="bad_words")
