"""Which bytes a token stands for.

Text is a stream of bytes that tokens cut anywhere, also inside a character. Nearly every language model's
decoder is a fixed map from token to bytes, followed at most by cutting a space at the very start of the text:

* byte-level BPE (GPT-2, Llama 3, Qwen): each character of a token is one byte, in GPT-2's printable alphabet;
* SentencePiece style (Llama 2, Mistral, Gemma): `▁` is a space, and `<0xE4>` is one byte ("byte fallback").

`decoding_rule` recognises these from `tokenizer.json`; anything else (WordPiece and the like) gets None, and
the detokenizer falls back to comparing decoded windows.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from typing import Any

_BYTE_TOKEN = re.compile(r"<0x([0-9A-Fa-f]{2})>\Z")


@dataclass(frozen=True, slots=True)
class DecodingRule:
    """How a decoder turns tokens into bytes.

    Attributes:
        byte_level: tokens are written in GPT-2's byte alphabet.
        byte_fallback: tokens such as `<0xE4>` are single bytes.
        replacements: applied to each token in order, as (pattern, content).
        strip_start: (character, most) cut off the start of the whole text.
        drop_in_first: removed from the first token altogether (Metaspace's added prefix), empty for nothing.
    """

    byte_level: bool = False
    byte_fallback: bool = False
    replacements: tuple[tuple[str, str], ...] = ()
    strip_start: tuple[str, int] = ("", 0)
    drop_in_first: str = ""

    def token_bytes(self, token: str, *, first: bool = False) -> bytes:
        """The bytes of one token as it is written in the vocabulary; `first` at the start of a text."""
        if self.byte_level:
            alphabet = _byte_alphabet()
            # As the reference decoder does: a token with one foreign character is taken literally.
            mapped = [alphabet.get(character) for character in token]
            return token.encode() if None in mapped else bytes(b for b in mapped if b is not None)
        if first and self.drop_in_first:
            token = token.replace(self.drop_in_first, "")
        for pattern, content in self.replacements:
            token = token.replace(pattern, content)
        if self.byte_fallback and (match := _BYTE_TOKEN.match(token)):
            return bytes((int(match[1], 16),))
        return token.encode()


def decoding_rule(decoder: Mapping[str, Any] | None) -> DecodingRule | None:
    """Read the `decoder` section of tokenizer.json; None when it is not a plain map from token to bytes."""
    if decoder is None:
        return None
    steps = decoder["decoders"] if decoder["type"] == "Sequence" else [decoder]
    if [step["type"] for step in steps] == ["ByteLevel"]:
        return DecodingRule(byte_level=True)
    replacements: list[tuple[str, str]] = []
    byte_fallback, fused, strip_start, drop_in_first = False, False, ("", 0), ""
    for step in steps:
        match step:
            case {"type": "Replace", "pattern": {"String": str(pattern)}, "content": str(content)} if (
                pattern and not fused and not byte_fallback
            ):
                replacements.append((pattern, content))
            case {"type": "ByteFallback"} if not fused:
                byte_fallback = True
            case {"type": "Fuse"}:
                fused = True
            case {"type": "Strip", "content": str(content), "start": int(start), "stop": 0} if (
                fused and not strip_start[1]
            ):
                strip_start = (content, start)
            case {"type": "Metaspace", "replacement": str(mark)} if len(steps) == 1:
                fused = True
                drop_in_first = "" if step.get("prepend_scheme", "always") == "never" else mark
                replacements.append((mark, " "))
            case _:
                return None
    # Without Fuse the pieces are joined all the same, but then ByteFallback and the rest act per token.
    return DecodingRule(
        byte_fallback=byte_fallback,
        replacements=tuple(replacements),
        strip_start=strip_start,
        drop_in_first=drop_in_first,
    )


@cache
def _byte_alphabet() -> dict[str, int]:
    """GPT-2's printable alphabet: visible Latin-1 stands for itself, the rest for U+0100 and up."""
    visible = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    hidden = [byte for byte in range(256) if byte not in set(visible)]
    return {chr(byte): byte for byte in visible} | {chr(256 + n): byte for n, byte in enumerate(hidden)}
