"""Prompts have the wanted length, share what they should, and come from files in several forms."""

from __future__ import annotations

import random
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from rhizome_launcher.bench.errors import BenchError
from rhizome_launcher.bench.workload import WORDS, PromptFile, RandomWords, TokenRate


def words_of(workload: RandomWords) -> list[str]:
    content = workload.next().content
    assert isinstance(content, str)
    return content.split()


@given(
    per_word=st.floats(0.5, 4), fixed=st.floats(0, 60), tokens=st.integers(100, 4000), seed=st.integers(0, 9)
)
def test_a_prompt_has_the_wanted_tokens_to_half_a_word(
    per_word: float, fixed: float, tokens: int, seed: int
) -> None:
    rate = TokenRate(per_word, fixed)
    workload = RandomWords(rate, input_tokens=tokens, shared_tokens=0, chance=random.Random(seed))
    assert abs(fixed + per_word * len(words_of(workload)) - tokens) <= per_word / 2 + 1e-6


def test_prompts_share_their_beginning_and_nothing_else() -> None:
    workload = RandomWords(TokenRate(2.0, 10.0), input_tokens=110, shared_tokens=60, chance=random.Random(0))
    first, second = words_of(workload), words_of(workload)
    assert len(first) == len(second) == 50
    assert first[:30] == second[:30]
    assert first[30:34] != second[30:34]


def test_words_are_all_different() -> None:
    assert len(set(WORDS)) == len(WORDS) > 64


def test_a_file_may_hold_prompts_conversations_and_batch_lines(tmp_path: Path) -> None:
    path = tmp_path / "prompts.jsonl"
    path.write_text(
        '{"prompt": "one", "max_tokens": 5}\n'
        '{"messages": [{"role": "user", "content": "two"}]}\n\n'
        '"three"\n'
        '{"body": {"messages": [{"role": "user", "content": "4"}], "max_completion_tokens": 9}}'
    )
    prompts = PromptFile(path)
    assert len(prompts) == 4
    found = [prompts.next() for _ in range(5)]
    assert [p.content for p in found] == [
        "one",
        [{"role": "user", "content": "two"}],
        "three",
        [{"role": "user", "content": "4"}],
        "one",
    ]
    assert [p.max_tokens for p in found] == [5, None, None, 9, 5]


@pytest.mark.parametrize(
    ("text", "complaint"),
    [
        ("", "holds no prompts"),
        ('{"prompt": "a"}\nnonsense', "line 2 is not JSON"),
        ('{"question": "a"}', 'line 1 has neither "messages" nor "prompt"'),
        ("7", 'line 1 has neither "messages" nor "prompt"'),
    ],
)
def test_a_file_that_cannot_be_used_is_explained(tmp_path: Path, text: str, complaint: str) -> None:
    path = tmp_path / "prompts.jsonl"
    path.write_text(text)
    with pytest.raises(BenchError, match=complaint):
        PromptFile(path)


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(BenchError, match=r"nowhere\.jsonl cannot be read: No such file"):
        PromptFile(tmp_path / "nowhere.jsonl")
