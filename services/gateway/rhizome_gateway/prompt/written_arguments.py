"""Arguments of a call as the model wrote them, back from a client: not always JSON.

An answer may end inside of a call, and a model may write a broken one. Clients keep both, tell the model what
was wrong, and send the whole conversation again; refused for its history, it could never go on.
"""

from __future__ import annotations

import json
from typing import Any

import orjson
from pydantic_core import from_json

MAX_BROKEN_CHARS = 256 * 1024
"""Of longer arguments that are broken nothing is taken: reading them again and again takes the interpreter's
lock for long."""


def begins_as_object(text: str) -> bool:
    """Whether `certain_object` makes anything of a text; cheap, however long that is."""
    return text.lstrip().startswith("{")


def certain_object(text: str) -> dict[str, Any] | None:
    """The object that a text holds; of a broken or unfinished one what comes before the break.

    Takes tens of milliseconds where the text is long.

    Returns:
        None where the text does not begin as an object: no call that was given out does.
    """
    try:
        value = orjson.loads(text)
    except orjson.JSONDecodeError:
        return _certain(text) if begins_as_object(text) else None
    return value if isinstance(value, dict) else None


def _certain(text: str) -> dict[str, Any]:
    if len(text) > MAX_BROKEN_CHARS:
        return {}
    try:
        json.loads(text)
        end = len(text)
    except json.JSONDecodeError as error:
        end = error.pos
    except (RecursionError, ValueError):  # nested too deeply; an integer of thousands of digits
        return {}
    # A comma may be what is wrong: "a": 1,}
    for part in (text, text[:end], text[:end].rstrip().removesuffix(",")):
        try:
            value = from_json(part, allow_partial=True, allow_inf_nan=False)
        except ValueError:
            continue
        if isinstance(value, dict):
            return value
    return {}
