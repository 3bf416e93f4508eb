"""Thinking that a client carries from one request to the next.

Clients that ask for `reasoning.encrypted_content` send that field back and the text of reasoning items not,
because OpenAI reads nothing else. So the text travels in it. It is not secret: the item shows it anyway.
"""

from __future__ import annotations

import base64
import binascii

_PREFIX = "rhizome-1."


def carried(reasoning: str) -> str:
    """The text, in a form that nobody mistakes for text."""
    return _PREFIX + base64.b64encode(reasoning.encode()).decode()


def reasoning_of(content: str) -> str | None:
    """The text that `carried` was given; None for what another server encrypted.

    Raises:
        ValueError: it is ours, but was changed on the way.
    """
    if not content.startswith(_PREFIX):
        return None
    try:
        return base64.b64decode(content.removeprefix(_PREFIX), validate=True).decode()
    except (binascii.Error, UnicodeDecodeError) as error:
        raise ValueError("encrypted_content was changed") from error
