"""How many tokens the server makes of a word, asked instead of guessed: no tokenizer is needed here."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from rhizome_launcher.bench.client import OpenAIClient
from rhizome_launcher.bench.errors import BenchError
from rhizome_launcher.bench.records import RequestRecord
from rhizome_launcher.bench.workload import WORDS, TokenRate

GUESS = TokenRate(per_word=1.0, fixed=0.0, measured=False)


async def token_rate(client: OpenAIClient, model: str, extra: Mapping[str, Any]) -> TokenRate:
    """Send all words once and twice, and read off what a word costs and what every prompt costs anyway.

    Raises:
        BenchError: the server refuses such a request, as it would refuse all that follow.
    """
    once = await _ask(client, model, 1, extra)
    twice = await _ask(client, model, 2, extra)
    if not once.prompt_tokens or twice.prompt_tokens <= once.prompt_tokens:
        return GUESS
    per_word = (twice.prompt_tokens - once.prompt_tokens) / len(WORDS)
    return TokenRate(per_word, once.prompt_tokens - per_word * len(WORDS))


async def _ask(client: OpenAIClient, model: str, times: int, extra: Mapping[str, Any]) -> RequestRecord:
    record = await client.send(client.body(" ".join(WORDS * times), model, 1, extra))
    if not record.ok:
        hint = ""
        if record.error in ("http_400", "http_422") and extra:
            hint = f" If it does not know {', '.join(extra)}: --no-ignore-eos leaves that out."
        raise BenchError(f"the server refuses a first request ({record.error}: {record.detail}).{hint}")
    return record
