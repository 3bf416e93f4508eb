"""What a client sends for the model to read: text or token ids, one input or several."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from typing import Annotated, Any

from pydantic import PlainValidator

from rhizome_gateway.errors import ApiError
from rhizome_gateway.schema.fields import refuse
from rhizome_gateway.served_model import ServedModel
from rhizome_text.detokenizer import IncrementalDetokenizer
from rhizome_text.tokenizer import Tokenizer

MAX_INPUTS = 2048

_INLINE_CHARS = 2048
"""Shorter texts take less time than a hop to another thread."""

_CONTEXT_TOKENS = 16
"""No character has more tokens, and no decoder looks back further."""


def _inputs(value: Any) -> list[str] | list[list[int]]:
    """One input is a list of one; checked without a look at each number from Python."""
    if isinstance(value, str):
        return [value]
    kinds = set(map(type, value)) if isinstance(value, list) else set()
    if kinds == {int}:
        value, kinds = [value], {list}
    if kinds == {list}:
        if any(set(map(type, ids)) != {int} for ids in value):
            raise refuse("invalid_value", "Token ids are whole numbers, and no list of them may be empty.")
    elif kinds != {str}:
        raise refuse(
            "invalid_value",
            "Only a string, a list of strings, a list of token ids, or a list of such lists can be read "
            "here; no list may be empty.",
        )
    if len(value) > MAX_INPUTS:
        raise refuse("invalid_value", f"At most {MAX_INPUTS} inputs fit a request; send several requests.")
    checked: list[str] | list[list[int]] = value
    return checked


TextInputs = Annotated[
    list[str] | list[list[int]],
    PlainValidator(_inputs, json_schema_input_type=str | list[str] | list[int] | list[list[int]]),
]
"""A string, several, token ids, or several lists of them."""


@dataclass(frozen=True, slots=True)
class ModelInput:
    """One input as the model reads it.

    Attributes:
        token_ids: in order.
        written: positions of what the client wrote; the tokenizer added what is outside.
        is_text: it was sent as text, so that the special tokens in it are the client's own words.
    """

    token_ids: Sequence[int]
    written: range
    is_text: bool

    def shows(self, position: int, hidden_ids: frozenset[int]) -> bool:
        """Whether a token belongs to the text of this input.

        Args:
            position: of the token.
            hidden_ids: tokens that are not text, where an input was not sent as text.
        """
        if self.is_text:
            return position in self.written
        return self.token_ids[position] not in hidden_ids

    def text(self, tokenizer: Tokenizer, hidden_ids: frozenset[int]) -> str:
        """The text of its tokens; an incomplete character at the end is left out."""
        ids = [i for place, i in enumerate(self.token_ids) if self.shows(place, hidden_ids)]
        return IncrementalDetokenizer(tokenizer, skip_special_tokens=False).push(ids)

    def part(self, kept: slice) -> ModelInput:
        """What is left of it when only some of its tokens are read."""
        first, stop, _ = kept.indices(len(self.token_ids))
        written = self.written
        shifted = range(max(first, written.start) - first, min(stop, written.stop) - first)
        return ModelInput(self.token_ids[first:stop], shifted, self.is_text)

    def ending(self, hidden_ids: frozenset[int]) -> list[int]:
        """Tokens that tell how a text goes on from here: does it begin a word, or complete a character."""
        first = max(0, len(self.token_ids) - _CONTEXT_TOKENS)
        return [self.token_ids[i] for i in range(first, len(self.token_ids)) if self.shows(i, hidden_ids)]


async def read_inputs(
    served: ServedModel,
    inputs: list[str] | list[list[int]],
    *,
    add_special_tokens: bool,
    field: str,
    keep: slice | None = None,
) -> list[ModelInput]:
    """Tokenise, off the event loop where it takes long.

    Args:
        served: whose tokenizer and limits.
        inputs: what the client sent.
        add_special_tokens: add to texts what the tokenizer does, such as a begin-of-sequence token. Token ids
            are taken as they are.
        field: the request's, for errors.
        keep: the tokens of each that are read; None for all or an error.

    Raises:
        ApiError: 400; an input is longer than the context, has no tokens, or unknown ones.
    """
    limit, vocab_size = served.info.max_context_tokens, served.info.vocab_size
    read: list[ModelInput] = []
    if isinstance(inputs[0], str):
        # No token stands for more characters than the longest one.
        longest = max(1, served.tokenizer.longest_token_chars)
        texts = [text for text in inputs if isinstance(text, str)]
        if keep is not None:  # what cannot be kept is not tokenised either
            texts = [_shortened(text, (limit + 1) * longest, keep) for text in texts]
        else:
            for place, text in enumerate(texts):
                if (least := len(text) // longest) > limit:
                    raise too_long(limit, f"at least {least}", input_name(field, place, len(texts)), None)
        tokenise = partial(_tokenised, served.tokenizer, texts, add_special_tokens)
        chars = sum(map(len, texts))
        read = tokenise() if chars <= _INLINE_CHARS else await served.long_texts.work(chars, tokenise)
    else:
        for ids in inputs:
            assert isinstance(ids, list)
            read.append(ModelInput(ids, range(len(ids)), False))
    for place, one in enumerate(read):
        name = input_name(field, place, len(read))
        if not one.token_ids:
            raise ApiError(
                400,
                f"'{name}' has no tokens; send at least one character.",
                code="invalid_value",
                param=name,
            )
        if not (min(one.token_ids) >= 0 and max(one.token_ids) < vocab_size):
            raise ApiError(
                400,
                f"'{name}' has a token id that this model does not have; ids are 0 to {vocab_size - 1}.",
                code="invalid_value",
                param=name,
            )
    return read if keep is None else [one.part(keep) for one in read]


def too_long(limit: int, tokens: str, name: str, max_tokens: int | None) -> ApiError:
    """The error for an input that does not fit.

    Args:
        limit: tokens that the context holds.
        tokens: how many the input has.
        name: of the input.
        max_tokens: what was asked for the answer.
    """
    asked = f" and {max_tokens} were asked for the answer" if max_tokens else ""
    return ApiError(
        400,
        # Clients such as LiteLLM know this error by OpenAI's own words.
        f"This model's maximum context length is {limit} tokens, but '{name}' has {tokens}{asked}. "
        f"Shorten it{' or ask for a shorter answer' if max_tokens else ''}.",
        code="context_length_exceeded",
        param=name,
    )


def _shortened(text: str, chars: int, keep: slice) -> str:
    """The end of a text of which the end is kept, its beginning where that is."""
    return text[-chars:] if keep.start else text[:chars]


def _tokenised(tokenizer: Tokenizer, texts: Sequence[str], add_special_tokens: bool) -> list[ModelInput]:
    added = tokenizer.encode("", True) if add_special_tokens else []
    read = []
    for text in texts:
        ids = tokenizer.encode(text, add_special_tokens)
        read.append(ModelInput(ids, _written(ids, added), True))
    return read


def _written(token_ids: Sequence[int], added: Sequence[int]) -> range:
    """Where the client's own tokens are, given what the tokenizer adds before and behind: the most before."""
    for before in range(len(added), -1, -1):
        behind = len(token_ids) - (len(added) - before)
        if list(token_ids[:before]) == added[:before] and list(token_ids[behind:]) == added[before:]:
            return range(before, behind)
    return range(len(token_ids))


def input_name(field: str, place: int, count: int) -> str:
    """What errors call one of several inputs: `prompt[3]`, and just `prompt` where it is alone."""
    return field if count == 1 else f"{field}[{place}]"
