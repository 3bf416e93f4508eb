"""Keyword arguments that `generate`, `chat` and `stream` share, so that they are documented once."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TypedDict

from rhizome_grammar.spec import Grammar


class AnswerOptions(TypedDict, total=False):
    """What an answer should be like, beside how its tokens are chosen.

    Attributes:
        max_tokens: most tokens per answer; None, the default, fills the context window, 0 only looks at the
            prompt.
        min_tokens: stop tokens are not chosen before this many.
        stop: strings that end an answer; not part of it.
        stop_token_ids: tokens that end an answer, beside the checkpoint's.
        ignore_eos: do not end at the checkpoint's end-of-sequence tokens.
        echo: put the prompt before the answer's text.
        prompt_logprobs: how many rivals to report beside each prompt token's log probability.
        grammar: what the answers must conform to.
    """

    max_tokens: int | None
    min_tokens: int
    stop: Sequence[str]
    stop_token_ids: Sequence[int]
    ignore_eos: bool
    echo: bool
    prompt_logprobs: int | None
    grammar: Grammar | None
