"""Variables that a request may set for the chat template."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from rhizome_gateway.errors import ApiError

TEMPLATE_VARIABLES = frozenset(
    {"date_string", "enable_thinking", "preserve_thinking", "reasoning_effort", "thinking", "thinking_budget"}
)
"""What `chat_template_kwargs` may set; anything else could replace the conversation itself."""

_MAX_CHARS = 128


def template_variables(
    reasoning_effort: str | None = None, chat_template_kwargs: Mapping[str, Any] | None = None
) -> dict[str, Any]:
    """Variables for the template.

    Args:
        reasoning_effort: `none` switches thinking off, by both names that templates have for it; others are
            the template's business.
        chat_template_kwargs: set directly, and more specific than the effort.

    Raises:
        ApiError: 400; a variable that may not be set, or that is no text, number or truth value.
    """
    if reasoning_effort == "none":
        variables: dict[str, Any] = {"enable_thinking": False, "thinking": False}
    else:
        variables = {} if reasoning_effort is None else {"reasoning_effort": reasoning_effort}
    given = {name: value for name, value in (chat_template_kwargs or {}).items() if value is not None}
    if not given.keys() <= TEMPLATE_VARIABLES:
        allowed = ", ".join(sorted(TEMPLATE_VARIABLES))
        raise _refused("unsupported_parameter", f"chat_template_kwargs may only set {allowed}.")
    if not all(_is_plain(value) for value in given.values()):
        raise _refused(
            "invalid_value",
            "Each value of chat_template_kwargs must be true, false, a number or a text of at most "
            f"{_MAX_CHARS} characters.",
        )
    return variables | given


def _is_plain(value: object) -> bool:
    return isinstance(value, (bool, int, float)) or (isinstance(value, str) and len(value) <= _MAX_CHARS)


def _refused(code: str, message: str) -> ApiError:
    return ApiError(400, message, code=code, param="chat_template_kwargs")
