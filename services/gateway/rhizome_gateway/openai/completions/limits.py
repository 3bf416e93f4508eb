"""What one request may ask for, so that what it takes in memory is bounded."""

from __future__ import annotations

from collections.abc import Sequence

from rhizome_gateway.errors import ApiError
from rhizome_gateway.openai.completions.request import CompletionRequest
from rhizome_gateway.openai.scored_prompt import check_scores
from rhizome_gateway.runtime import Runtime
from rhizome_gateway.served_model import ServedModel
from rhizome_gateway.tokenization.inputs import ModelInput

MAX_CANDIDATES = 2048
"""Answers of one request, over all prompts."""

MAX_PROMPT_TOKENS = 2**21
"""Of one request, each prompt counted once for each of its answers."""

MAX_SCORES = 2**20
"""Log probabilities in one response: that many make some 50 MB of JSON. What evaluations send, such as 250
prompts of 2048 tokens with `logprobs: 1`, still fits."""


def check_choices(runtime: Runtime, request: CompletionRequest) -> None:
    """Refuse too many answers, before anything is tokenised.

    Raises:
        ApiError: 400.
    """
    most = runtime.settings.max_choices
    if request.num_candidates > most:
        name = "n" if request.num_choices > most else "best_of"
        raise ApiError(400, f"{name} may be at most {most} here.", code="invalid_value", param=name)
    if len(request.prompt) * request.num_candidates > MAX_CANDIDATES:
        raise ApiError(
            400,
            f"A request may ask for {MAX_CANDIDATES} answers over all its prompts; send several requests.",
            code="invalid_value",
            param="prompt",
        )


def check_size(served: ServedModel, request: CompletionRequest, prompts: Sequence[ModelInput]) -> None:
    """Refuse too many tokens, or log probabilities of them.

    Raises:
        ApiError: 400.
    """
    prompt_tokens = sum(len(prompt.token_ids) for prompt in prompts)
    problem = ""
    if prompt_tokens * request.num_candidates > MAX_PROMPT_TOKENS:
        problem = f"A request may have {MAX_PROMPT_TOKENS} tokens in its prompts, counted for each answer"
    check_scores(prompt_tokens * request.num_choices, request.prompt_logprobs)
    if request.logprobs is not None:
        context = served.info.max_context_tokens
        tokens = sum(min(request.token_limit, context - len(prompt.token_ids)) for prompt in prompts)
        tokens += prompt_tokens if request.echo else 0
        if tokens * request.num_candidates * (1 + request.logprobs) > MAX_SCORES:
            problem = f"A response may hold {MAX_SCORES} log probabilities"
    if problem:
        raise ApiError(400, f"{problem}; send fewer prompts at a time.", code="invalid_value", param="prompt")
