"""How well a checkpoint predicts a text, through the engine's own prompt log probabilities."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from itertools import islice
from typing import Any

from rhizome_engine.evaluation.windows import Window, sliding_windows
from rhizome_engine.llm import LLM
from rhizome_text.tokenizer import Tokenizer

DEFAULT_CONTEXT = 1024
WINDOWS_AT_ONCE = 16


@dataclass(slots=True)
class TextScore:
    """Negative log likelihoods of a text's tokens, in nats, added up as they come.

    Attributes:
        tokens: tokens scored.
        text_bytes: bytes of UTF-8 that they stand for.
        total: sum of the negative log likelihoods.
        squares: sum of their squares.
    """

    tokens: int = 0
    text_bytes: int = 0
    total: float = 0.0
    squares: float = 0.0

    def add(self, logprobs: Sequence[float], text_bytes: int) -> None:
        """Count the scored tokens of a window."""
        self.tokens += len(logprobs)
        self.text_bytes += text_bytes
        self.total -= math.fsum(logprobs)
        self.squares += math.fsum(value * value for value in logprobs)

    @property
    def per_token(self) -> float:
        """Mean negative log likelihood."""
        return self.total / self.tokens

    @property
    def standard_error(self) -> float:
        """Of the mean, as if tokens were independent; they are not quite, so it is a lower bound."""
        if self.tokens < 2:
            return math.nan
        variance = max(0.0, self.squares - self.tokens * self.per_token**2) / (self.tokens - 1)
        return math.sqrt(variance / self.tokens)

    def to_json(self) -> dict[str, Any]:
        """The figures; perplexity's standard error is the first-order one."""
        perplexity = math.exp(self.per_token)
        error = self.standard_error if self.tokens > 1 else None
        return {
            "tokens_scored": self.tokens,
            "bytes_scored": self.text_bytes,
            "nll_per_token": self.per_token,
            "nll_per_token_standard_error": error,
            "nll_per_byte": self.total / self.text_bytes,
            "bits_per_byte": self.total / math.log(2) / self.text_bytes,
            "perplexity": perplexity,
            "perplexity_standard_error": None if error is None else perplexity * error,
        }


@dataclass(slots=True)
class PerplexityRun:
    """Scores one text window by window; `score` is valid at any time.

    Args:
        llm: the checkpoint.
        text: what to predict.
        context: tokens of a window, None for 1,024 or the model's limit.
        stride: tokens by which windows start apart, None for half of a window.

    Raises:
        ValueError: the text is too short, or a window does not fit the model.
    """

    llm: LLM
    text: str
    context: int | None = None
    stride: int | None = None
    score: TextScore = field(default_factory=TextScore)
    windows: list[Window] = field(init=False)

    def __post_init__(self) -> None:
        """Cut the text."""
        limit = self.llm.core.max_context_tokens
        self.context = context = self.context or min(DEFAULT_CONTEXT, limit)
        if context > limit:
            raise ValueError(f"the model's context is {limit} tokens; a window of {context} does not fit")
        self.stride = self.stride or max(1, context // 2)
        tokenizer = self.llm.tokenizer
        ids = tokenizer.encode(self.text)
        bos_id = bos_of_texts(tokenizer)
        if len(ids) < 2:
            raise ValueError(f"the text has {len(ids)} tokens; at least 2 are needed")
        self.windows = list(sliding_windows(ids, context=context, stride=self.stride, bos_id=bos_id))

    def run(self) -> Iterator[int]:
        """Score every window; yields how many are done."""
        done = 0
        for windows in _groups(self.windows, WINDOWS_AT_ONCE):
            prompts = [window.token_ids for window in windows]
            completions = self.llm.generate(prompts, max_tokens=0, prompt_logprobs=0)
            for window, completion in zip(windows, completions, strict=True):
                assert completion.prompt_logprobs is not None
                scored = completion.prompt_logprobs[window.first_scored :]
                self.score.add([token.logprob for token in scored if token is not None], self._bytes(window))
            done += len(windows)
            yield done

    def _bytes(self, window: Window) -> int:
        token_bytes = self.llm.tokenizer.token_bytes
        return sum(len(token_bytes(token_id)) for token_id in window.token_ids[window.first_scored :])


def bos_of_texts(tokenizer: Tokenizer) -> int | None:
    """The begin-of-sequence token where the tokenizer puts it before texts, as the model then expects it."""
    start = tokenizer.encode("", add_special_tokens=True)[:1]
    return start[0] if start and start[0] == tokenizer.bos_id else None


def _groups(windows: Sequence[Window], size: int) -> Iterator[list[Window]]:
    remaining = iter(windows)
    while group := list(islice(remaining, size)):
        yield group
