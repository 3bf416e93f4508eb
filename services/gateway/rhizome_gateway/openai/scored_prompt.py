"""`prompt_logprobs`: how likely the tokens of a prompt were, as vLLM shows it."""

from __future__ import annotations

from collections.abc import Sequence

import orjson

from rhizome.engine.v1.generate_pb2 import TokenLogprob
from rhizome_gateway.errors import ApiError
from rhizome_gateway.openai.objects import finite_logprob
from rhizome_gateway.tokenization.spelling import Spelling

MAX_PROMPT_SCORES = 2**18
"""Log probabilities of prompts in one response; so many make 20 MB of JSON, as each has names and a text."""

_AT_ONCE = 256
"""Tokens that are written before other threads get a turn."""


class ScoredPrompt:
    """Keeps what the engine says of a prompt, to be written beside the event loop: there may be a lot of it.

    Args:
        token_ids: of the prompt.
        spelled: writes them.
    """

    def __init__(self, token_ids: Sequence[int], spelled: Spelling) -> None:
        self._token_ids = token_ids
        self._spelled = spelled
        self._scores: list[TokenLogprob] = []

    def add(self, logprobs: Sequence[TokenLogprob]) -> None:
        """Take the next tokens' log probabilities; those of the second token come first."""
        self._scores += logprobs

    def written(self) -> orjson.Fragment:
        """A list with an entry for each token, null for the first, which comes after nothing."""
        pieces = [b"null"]
        for start in range(0, len(self._scores), _AT_ONCE):
            scores = self._scores[start : start + _AT_ONCE]
            ids = self._token_ids[start + 1 : start + 1 + len(scores)]
            entries = [self._entry(token_id, one) for token_id, one in zip(ids, scores, strict=True)]
            pieces.append(orjson.dumps(entries)[1:-1])
        return orjson.Fragment(b"[" + b",".join(pieces) + b"]")

    def _entry(self, token_id: int, logprob: TokenLogprob) -> dict[str, dict[str, object]]:
        """The token and the likeliest ones, by id; its rank is null where it is none of them."""
        entry = {str(token_id): self._told_of(token_id, logprob.logprob, None)}
        for rank, rival in enumerate(logprob.top, 1):
            entry[str(rival.token_id)] = self._told_of(rival.token_id, rival.logprob, rank)
        return entry

    def _told_of(self, token_id: int, logprob: float, rank: int | None) -> dict[str, object]:
        return {"logprob": finite_logprob(logprob), "rank": rank, "decoded_token": self._spelled(token_id)}


def check_scores(prompt_tokens: int, prompt_logprobs: int | None) -> None:
    """Refuse more log probabilities of prompts than one response may hold.

    Args:
        prompt_tokens: of all prompts, counted for each answer that shows them.
        prompt_logprobs: rivals for each; None for no log probabilities.

    Raises:
        ApiError: 400.
    """
    if prompt_logprobs is not None and prompt_tokens * (1 + prompt_logprobs) > MAX_PROMPT_SCORES:
        raise ApiError(
            400,
            f"A response may hold {MAX_PROMPT_SCORES} log probabilities of prompts; ask for fewer of them "
            "or for those of fewer tokens.",
            code="invalid_value",
            param="prompt_logprobs",
        )
