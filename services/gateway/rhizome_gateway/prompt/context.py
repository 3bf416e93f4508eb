"""What fits into the model's context. Nothing is ever cut unless the client says so."""

from __future__ import annotations

from rhizome_gateway.errors import ApiError
from rhizome_gateway.served_model import ServedModel
from rhizome_gateway.tokenization.inputs import too_long


def kept_tokens(served: ServedModel, wanted: int | None, max_tokens: int | None) -> int | None:
    """How many tokens of a prompt are read at most; None for all or an error.

    Args:
        served: the model.
        wanted: `truncate_prompt_tokens`.
        max_tokens: what was asked for the answer.

    Raises:
        ApiError: 400; more than the context holds.
    """
    limit = served.info.max_context_tokens
    if wanted is None:
        return None
    if wanted > limit:
        raise ApiError(
            400,
            f"truncate_prompt_tokens may be at most {limit}, this model's maximum context length.",
            code="invalid_value",
            param="truncate_prompt_tokens",
        )
    return wanted if wanted > 0 else max(1, limit - (1 if max_tokens is None else max_tokens))


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
