"""The bundled model gives the same answers alone, together, warm, in chunks and under pressure."""

from pathlib import Path

import pytest
import torch

from rhizome_engine import LLM, SamplingParams
from rhizome_engine.scheduler.config import SchedulerConfig

DEMO = Path(__file__).parents[3] / "models" / "demo"
GREEDY = SamplingParams(temperature=0.0)
MAX_TOKENS = 24

QUESTIONS = [
    "Hello!",
    "你好",
    "What is 7 plus 5?",
    "What is 19 minus 6?",
    "Count from 3 to 9.",
    "Spell the word stone.",
    "Reverse the word apple.",
    "What is the capital of France?",
    "What is the opposite of hot?",
    "What color is the sky?",
    "Who are you?",
    "What is 8 times 4?",
    "What is the capital of Japan?",
    "Spell the word river.",
    "What is the opposite of big?",
    "Count from 1 to 5.",
]
CONVERSATIONS = [
    [{"role": "system", "content": "Your name is Fern."}, {"role": "user", "content": question}]
    for question in QUESTIONS
]


def load(**config):
    torch.set_num_threads(1)
    page_size = config.pop("page_size", 16)
    tokens = config.pop("pool_tokens", 8192)
    return LLM(
        DEMO,
        device="cpu",
        dtype="float32",
        page_size=page_size,
        num_pages=tokens // page_size,
        scheduler=SchedulerConfig(**config),
    )


def answers(llm, conversations=CONVERSATIONS):
    completions = llm.chat(conversations, GREEDY, max_tokens=MAX_TOKENS)
    llm.core.check_conservation()
    return [completion.token_ids for completion in completions]


@pytest.fixture(scope="module")
def alone():
    llm = load(max_batch_size=1)
    found = []
    for conversation in CONVERSATIONS:
        llm.core.flush_cache()
        found += answers(llm, [conversation])
    assert any(found)
    return found


@pytest.mark.parametrize("page_size", [1, 16])
@pytest.mark.parametrize("chunk", [1, 7, 512])
def test_together_and_then_with_everything_cached(alone, page_size, chunk):
    llm = load(page_size=page_size, max_batch_size=16, max_chunk_tokens=chunk)
    assert answers(llm) == alone
    assert answers(llm, CONVERSATIONS[::-1]) == alone[::-1]
    assert llm.core.load().totals.cache_hit_tokens > 0


def test_under_preemption(alone):
    llm = load(pool_tokens=192, page_size=1)
    # Longer than the answers, so that the pool runs out whatever the model says.
    completions = llm.chat(CONVERSATIONS, GREEDY, max_tokens=2 * MAX_TOKENS, ignore_eos=True)
    assert llm.core.load().totals.preemptions > 0
    for completion, expected in zip(completions, alone, strict=True):
        assert completion.token_ids[: len(expected)] == expected


def test_a_second_turn_hits_what_the_first_one_left(alone):
    llm = load()
    first = llm.chat(CONVERSATIONS[2], GREEDY, max_tokens=MAX_TOKENS)[0]
    turns = [
        *CONVERSATIONS[2],
        {"role": "assistant", "content": first.text},
        {"role": "user", "content": "And who are you?"},
    ]
    warm = llm.chat(turns, GREEDY, max_tokens=MAX_TOKENS)[0]
    assert warm.usage.cached_tokens >= len(first.prompt_token_ids)
    llm.core.flush_cache()
    cold = llm.chat(turns, GREEDY, max_tokens=MAX_TOKENS)[0]
    assert cold.token_ids == warm.token_ids and cold.usage.cached_tokens == 0
