"""The tokenizer as llguidance needs it: which bytes each token stands for, which tokens end an output."""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, Any

from rhizome_grammar.errors import GrammarError

if TYPE_CHECKING:
    from llguidance import LLTokenizer


def build_vocabulary(tokenizer_json: str, vocab_size: int, eos_token_ids: Sequence[int]) -> LLTokenizer:
    """Build the trie of all tokens. It takes up to a second and holds the interpreter's lock meanwhile.

    Args:
        tokenizer_json: contents of the checkpoint's tokenizer.json.
        vocab_size: of the model; ids that the tokenizer does not have are never allowed.
        eos_token_ids: each ends an output.

    Raises:
        GrammarError: the tokenizer's kind is not supported, or it has more tokens than the model.
    """
    from llguidance import LLTokenizer

    # The constructor takes anything else for a file name.
    if not tokenizer_json.lstrip().startswith("{"):
        raise GrammarError("grammars cannot be used with this model: tokenizer.json is no JSON object")
    try:
        try:
            return LLTokenizer(tokenizer_json, n_vocab=vocab_size, eos_token=list(eos_token_ids))
        except ValueError as error:
            if "decoder type" not in str(error):
                raise
            plain = json.dumps(_with_plain_decoder(json.loads(tokenizer_json)), ensure_ascii=False)
            return LLTokenizer(plain, n_vocab=vocab_size, eos_token=list(eos_token_ids))
    except ValueError as error:
        raise GrammarError(f"grammars cannot be used with this model's tokenizer: {error}") from None


def check_special(vocabulary: LLTokenizer, token_ids: Iterable[int]) -> None:
    """Refuse tokens that a grammar must not name by id.

    Text is spelled, and padding rows of the model stand for nothing. Special tokens need ids where their
    names cannot be written in a grammar.

    Raises:
        GrammarError: one is not special.
    """
    for token_id in sorted(token_ids):
        named = token_id < vocabulary.vocab_size and vocabulary.is_special_token(token_id)
        if not named or vocabulary.decode_str([token_id]) in ("", f"<[{token_id}]>"):
            raise GrammarError(f"lark: <[{token_id}]> is no special token; only those may be named by id")


def _with_plain_decoder(tokenizer: dict[str, Any]) -> dict[str, Any]:
    """Spell a Metaspace decoder out; anything else stays.

    Within a text it only turns its mark into spaces; what it does at the very start of a text does not
    matter, as an output always follows a prompt.
    """
    decoder = tokenizer.get("decoder") or {}
    steps = decoder.get("decoders", []) if decoder.get("type") == "Sequence" else [decoder]
    plain: list[dict[str, Any]] = []
    for step in steps:
        if step.get("type") == "Metaspace":
            plain.append({"type": "Replace", "pattern": {"String": step["replacement"]}, "content": " "})
        else:
            plain.append(step)
    if plain == steps:
        return tokenizer
    names = [step.get("type") for step in plain]
    if "ByteFallback" not in names:
        plain.append({"type": "ByteFallback"})
    if "Fuse" not in names:
        plain.append({"type": "Fuse"})
    return {**tokenizer, "decoder": {"type": "Sequence", "decoders": plain}}
