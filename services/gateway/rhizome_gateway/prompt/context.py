"""What fits into the model's context. Nothing is ever cut silently."""

from __future__ import annotations

from rhizome_gateway.errors import ApiError
from rhizome_gateway.served_model import ServedModel
from rhizome_gateway.tokenization.inputs import too_long


def max_prompt_chars(served: ServedModel) -> int:
    """Characters beyond which a prompt does not fit however it is tokenised.

    No token stands for more characters than the longest one, so such a prompt need not be tokenised to be
    refused.
    """
    return (served.info.max_context_tokens + 1) * max(1, served.tokenizer.longest_token_chars) - 1


def too_many_chars(served: ServedModel, chars: int, field: str = "messages") -> ApiError:
    """The error for a prompt of more than `max_prompt_chars`."""
    least = chars // max(1, served.tokenizer.longest_token_chars)
    return too_long(served.info.max_context_tokens, f"at least {least}", field, None)


def check_context(
    served: ServedModel, prompt_tokens: int, max_tokens: int | None, field: str = "messages"
) -> None:
    """Refuse what cannot fit together with the answer that was asked for; None for any answer, of one token.

    Raises:
        ApiError: 400 `context_length_exceeded`.
    """
    limit = served.info.max_context_tokens
    if prompt_tokens + (1 if max_tokens is None else max_tokens) > limit:
        raise too_long(limit, str(prompt_tokens), field, max_tokens)
