"""Tokenise a prompt in which some texts of control tokens are text.

The tokenizers package finds added tokens wherever their text is. So the prompt goes through a twin of the
tokenizer, in which each control token has the same id and flags but a secret text; where a control token is
meant, the secret text is put in. All that merely looks like one is plain text to the twin, and is tokenised
together with the text around it, as by a tokenizer that never had the token.
"""

from __future__ import annotations

import json
import secrets
from collections.abc import Iterable
from typing import Any

import tokenizers

from rhizome_text.control_tokens import RenderedPrompt

_PRIVATE_PLANE = 0x100000
_PRIVATE_CHARS = 0xFFFD
_NONCE_CHARS = 6


class LiteralTextError(ValueError):
    """This vocabulary cannot read the texts of its control tokens as text."""


class LiteralEncoder:
    """The twin of a tokenizer; building it takes about as long as loading the tokenizer.

    Args:
        backend: the tokenizer.
        controls: texts of its control tokens.

    Raises:
        LiteralTextError: the vocabulary cannot be written with other texts for these tokens.
    """

    def __init__(self, backend: tokenizers.Tokenizer, controls: Iterable[str]) -> None:
        # Nobody outside this process can type what is drawn here.
        nonce = "".join(chr(_PRIVATE_PLANE + secrets.randbelow(_PRIVATE_CHARS)) for _ in range(_NONCE_CHARS))
        self._secret = {
            text: f"{nonce}{chr(_PRIVATE_PLANE + index)}" for index, text in enumerate(sorted(controls))
        }
        spec = json.loads(backend.to_str())
        spec |= {"post_processor": None, "truncation": None, "padding": None}
        for token in spec["added_tokens"]:
            if token["content"] in self._secret:  # whether it is a word of its own is decided before
                token |= {"content": self._secret[token["content"]], "single_word": False}
        _rename(spec["model"], self._secret)
        try:
            self._twin = tokenizers.Tokenizer.from_str(json.dumps(spec))
        except Exception as error:  # the tokenizers package raises plain Exception
            raise LiteralTextError(f"the vocabulary needs its control tokens' texts: {error}") from error
        if any(
            self._twin.token_to_id(secret) != backend.token_to_id(text)
            for text, secret in self._secret.items()
        ):
            raise LiteralTextError("the tokenizer gives control tokens other ids once they have other texts")

    def encode(self, prompt: RenderedPrompt) -> list[int]:
        """Token ids, control tokens only where the prompt says so."""
        pieces = []
        done = 0
        for begin, end in prompt.controls:
            pieces += [prompt.text[done:begin], self._secret[prompt.text[begin:end]]]
            done = end
        pieces.append(prompt.text[done:])
        ids: list[int] = self._twin.encode_batch_fast(["".join(pieces)], add_special_tokens=False)[0].ids
        return ids


def _rename(model: dict[str, Any], names: dict[str, str]) -> None:
    """Rename entries of a model's vocabulary, and drop the merges that would make them out of text."""
    vocabulary = model["vocab"]
    if isinstance(vocabulary, dict):
        model["vocab"] = {names.get(text, text): token_id for text, token_id in vocabulary.items()}
    else:
        model["vocab"] = [[names.get(text, text), score] for text, score in vocabulary]
    if model.get("unk_token") in names:
        model["unk_token"] = names[model["unk_token"]]
    if "merges" in model:
        model["merges"] = [merge for merge in model["merges"] if not _concerns(merge, names)]


def _concerns(merge: str | list[str], names: dict[str, str]) -> bool:
    left, right = merge.split(" ", 1) if isinstance(merge, str) else merge
    return left in names or right in names or left + right in names
