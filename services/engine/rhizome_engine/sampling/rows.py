"""The sampling settings of all running requests, as arrays over slots.

A request's settings are written once, at admission. A step picks the rows that it samples by indexing, so
that no Python runs per row.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import numpy as np
from numpy.typing import NDArray

from rhizome_engine.batch import BadWords, Int64, LogitBiases, SamplingBatch, TokenMasks
from rhizome_engine.sampling.params import MAX_BAD_WORD_TOKENS, SamplingParams
from rhizome_engine.sampling.ragged_settings import RaggedSettings

_FLOATS = ("temperature", "top_p", "min_p", "repetition_penalty", "frequency_penalty", "presence_penalty")
_UINT64_MASK = 2**64 - 1


class SamplingRows:
    """Settings by slot.

    Args:
        max_rows: slots.
        vocab_size: of the model.
    """

    def __init__(self, max_rows: int, vocab_size: int) -> None:
        self.vocab_size = vocab_size
        self._floats = np.zeros((len(_FLOATS), max_rows), np.float32)
        # num_prompt, top_k, top_logprobs, the seed's bits, min_tokens
        self._integers = np.zeros((5, max_rows), np.int64)
        self._biases = RaggedSettings(max_rows)
        self._stops = RaggedSettings(max_rows)
        self._allowed = RaggedSettings(max_rows)
        self._bad_words = RaggedSettings(max_rows)
        self._ragged = (self._biases, self._stops, self._allowed, self._bad_words)
        self._cache_key: tuple[bytes, ...] | None = None
        self._cached: tuple[LogitBiases | None, TokenMasks | None, BadWords | None] = (None, None, None)

    def set(
        self,
        slot: int,
        params: SamplingParams,
        seed: int,
        num_prompt: int,
        stop_ids: Iterable[int] = (),
        min_tokens: int = 0,
    ) -> None:
        """Describe the request that takes a slot.

        Args:
            slot: the slot.
            params: the request's settings.
            seed: of its random numbers; only the low 64 bits count.
            num_prompt: tokens of its prompt.
            stop_ids: tokens that end its output; banned until it has `min_tokens` tokens.
            min_tokens: as said.

        Raises:
            ValueError: a token id is outside of the vocabulary; the message begins with the setting's name.
        """
        words = params.bad_words
        self._check_ids("logit_bias", params.logit_bias)
        self._check_ids("allowed_token_ids", params.allowed_token_ids or ())
        self._check_ids("bad_words", (token_id for word in words for token_id in word))
        self._floats[:, slot] = [getattr(params, name) for name in _FLOATS]
        top_logprobs = -1 if params.top_logprobs is None else params.top_logprobs
        seed_bits = np.uint64(seed & _UINT64_MASK).view(np.int64)
        self._integers[:, slot] = num_prompt, params.top_k, top_logprobs, seed_bits, min_tokens

        banned = [word[0] for word in words if len(word) == 1]
        tokens = np.array([*params.logit_bias, *banned], np.int64)
        amounts = np.array([*params.logit_bias.values(), *[-np.inf] * len(banned)], np.float32)
        self._biases.set(slot, tokens, amounts)
        # A token that the model does not have is never chosen, so it needs no ban.
        stops = [token_id for token_id in stop_ids if 0 <= token_id < self.vocab_size]
        self._stops.set(slot, np.array(stops if min_tokens > 0 else [], np.int64))
        self._allowed.set(slot, self._bits(params.allowed_token_ids))
        longer = [word for word in words if len(word) > 1]
        prefixes = np.full((len(longer), MAX_BAD_WORD_TOKENS - 1), -1, np.int64)
        for prefix, word in zip(prefixes, longer, strict=True):
            prefix[-len(word) + 1 :] = word[:-1]
        self._bad_words.set(slot, prefixes, np.array([word[-1] for word in longer], np.int64))

    def clear(self, slot: int) -> None:
        """Forget a slot's settings, so that they cost nothing."""
        for settings in self._ragged:
            settings.clear(slot)

    def build(self, rows: Int64, slots: Int64, positions: Int64) -> SamplingBatch:
        """Describe the rows of a step that need a token, all [n].

        Args:
            rows: their indices in the batch, ascending.
            slots: their slots, each once.
            positions: index of the new token of each in prompt + output.
        """
        floats = self._floats.take(slots, axis=1)
        integers = self._integers.take(slots, axis=1)
        num_prompt, top_k, top_logprobs, seed_bits, min_tokens = integers
        biases = allowed = bad_words = None
        if self._biases or self._stops or self._allowed or self._bad_words:
            banning = positions - num_prompt < min_tokens
            biases, allowed, bad_words = self._build_ragged(slots, banning)
        temperature, top_p, min_p, repetition_penalty, frequency_penalty, presence_penalty = floats
        return SamplingBatch(
            rows=rows,
            slots=slots,
            positions=positions,
            num_prompt=num_prompt,
            seeds=seed_bits.view(np.uint64),
            temperature=temperature,
            top_k=top_k,
            top_p=top_p,
            min_p=min_p,
            repetition_penalty=repetition_penalty,
            frequency_penalty=frequency_penalty,
            presence_penalty=presence_penalty,
            top_logprobs=top_logprobs,
            biases=biases,
            allowed=allowed,
            bad_words=bad_words,
        )

    def _build_ragged(
        self, slots: Int64, banning: NDArray[np.bool_]
    ) -> tuple[LogitBiases | None, TokenMasks | None, BadWords | None]:
        """Return biases, allowed tokens and bad words; those of the step before where nothing changed."""
        versions = np.array([settings.version for settings in self._ragged])
        key = (slots.tobytes(), banning.tobytes(), versions.tobytes())
        if key != self._cache_key:
            self._cached = self._join_biases(slots, banning), self._masks(slots), self._words(slots)
            self._cache_key = key
        return self._cached

    def _join_biases(self, slots: Int64, banning: NDArray[np.bool_]) -> LogitBiases | None:
        parts: list[tuple[NDArray[Any], ...]] = []
        if (biases := self._biases.of(slots)) is not None:
            parts.append(biases)
        if banning.any() and (stops := self._stops.of(slots)) is not None:
            rows, tokens = stops
            active = banning[rows]
            amounts = np.full(len(rows), -np.inf, np.float32)
            parts.append((rows[active], tokens[active], amounts[active]))
        return LogitBiases(*map(np.concatenate, zip(*parts, strict=True))) if parts else None

    def _masks(self, slots: Int64) -> TokenMasks | None:
        masks = self._allowed.of(slots)
        if masks is None:
            return None
        rows, bits = masks
        order = np.argsort(rows)
        return TokenMasks(rows[order], bits[order])

    def _words(self, slots: Int64) -> BadWords | None:
        words = self._bad_words.of(slots)
        if words is None:
            return None
        rows, prefixes, last = words
        used = (prefixes >= 0).any(axis=0)
        return BadWords(rows, np.ascontiguousarray(prefixes[:, used.argmax() :]), last)

    def _bits(self, token_ids: tuple[int, ...] | None) -> NDArray[np.int32]:
        """Return one row of bits, or none where every token is allowed."""
        num_words = -(-self.vocab_size // 32)
        if token_ids is None:
            return np.empty((0, num_words), np.int32)
        flags = np.zeros(num_words * 32, np.bool_)
        flags[list(token_ids)] = True
        return np.packbits(flags, bitorder="little").view(np.int32)[None]

    def _check_ids(self, name: str, token_ids: Iterable[int]) -> None:
        ids = np.fromiter(token_ids, np.int64)
        wrong = ids[(ids < 0) | (ids >= self.vocab_size)]
        if len(wrong):
            raise ValueError(
                f"{name}: token id {wrong[0]} is outside the vocabulary of {self.vocab_size} tokens"
            )
