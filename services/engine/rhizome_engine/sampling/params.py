"""How one request wants its tokens chosen."""

from __future__ import annotations

import math
from dataclasses import dataclass, field

MAX_LOGPROBS = 128
MAX_BAD_WORDS = 1024
MAX_BAD_WORD_TOKENS = 64


@dataclass(frozen=True, slots=True)
class SamplingParams:
    """Sampling settings of one request, all defaults neutral except `temperature`.

    Attributes:
        temperature: 0 is greedy; larger is more random.
        top_p: keep the smallest set of tokens whose probabilities reach this sum, in (0, 1].
        top_k: keep this many tokens; 0 keeps all.
        min_p: keep tokens at least this fraction as likely as the likeliest, in [0, 1].
        repetition_penalty: divides (multiplies, when negative) logits of tokens seen in prompt or output.
        frequency_penalty: subtracted once per occurrence in the output.
        presence_penalty: subtracted when a token occurs in the output.
        seed: the same seed gives the same tokens whatever else is in the batch; None draws one.
        logit_bias: added to the logits after the penalties, by token id.
        top_logprobs: None for no log probabilities; else how many rivals to report beside the chosen token.
        allowed_token_ids: nothing else may be chosen; None allows every token.
        bad_words: token sequences that must not appear in the output; a sequence that begins in the prompt
            counts as well.

    Raises:
        ValueError: a setting is not finite or out of its range; the message begins with its name.
    """

    temperature: float = 1.0
    top_p: float = 1.0
    top_k: int = 0
    min_p: float = 0.0
    repetition_penalty: float = 1.0
    frequency_penalty: float = 0.0
    presence_penalty: float = 0.0
    seed: int | None = None
    logit_bias: dict[int, float] = field(default_factory=dict)
    top_logprobs: int | None = None
    allowed_token_ids: tuple[int, ...] | None = None
    bad_words: tuple[tuple[int, ...], ...] = ()

    def __post_init__(self) -> None:
        """Refuse what would break the sampler later."""
        _check("temperature", self.temperature, 0.0, 100.0)
        _check("top_p", self.top_p, 0.0, 1.0, low_open=True)
        _check("top_k", self.top_k, 0, 2**31 - 1)
        _check("min_p", self.min_p, 0.0, 1.0)
        _check("repetition_penalty", self.repetition_penalty, 0.0, 100.0, low_open=True)
        _check("frequency_penalty", self.frequency_penalty, -100.0, 100.0)
        _check("presence_penalty", self.presence_penalty, -100.0, 100.0)
        for token_id, bias in self.logit_bias.items():
            _check(f"logit_bias[{token_id}]", bias, -1000.0, 1000.0)
            _check_ids("logit_bias", (token_id,))
        if self.top_logprobs is not None:
            _check("top_logprobs", self.top_logprobs, 0, MAX_LOGPROBS)
        if self.allowed_token_ids is not None:
            if not self.allowed_token_ids:
                raise ValueError("allowed_token_ids must name at least one token")
            _check_ids("allowed_token_ids", self.allowed_token_ids)
        _check("bad_words", len(self.bad_words), 0, MAX_BAD_WORDS, what="sequences: ")
        for index, word in enumerate(self.bad_words):
            _check(f"bad_words[{index}]", len(word), 1, MAX_BAD_WORD_TOKENS, what="tokens: ")
            _check_ids(f"bad_words[{index}]", word)

    @property
    def greedy(self) -> bool:
        """Whether the likeliest token is always chosen."""
        return self.temperature == 0.0

    @property
    def has_penalties(self) -> bool:
        """Whether tokens seen before change the logits."""
        return self.repetition_penalty != 1.0 or self.frequency_penalty != 0.0 or self.presence_penalty != 0.0

    @property
    def needs_history(self) -> bool:
        """Whether sampling looks at earlier tokens, which then must be in the token table."""
        return self.has_penalties or any(len(word) > 1 for word in self.bad_words)


def _check(
    name: str, value: float, low: float, high: float, *, low_open: bool = False, what: str = ""
) -> None:
    if not math.isfinite(value) or value > high or value < low or (low_open and value == low):
        raise ValueError(
            f"{name} must be in {'(' if low_open else '['}{low:g}, {high:g}], not {what}{value!r}"
        )


def _check_ids(name: str, token_ids: tuple[int, ...]) -> None:
    if min(token_ids) < 0:
        raise ValueError(f"{name} must hold token ids, which are not negative, not {min(token_ids)}")
