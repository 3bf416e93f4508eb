"""Two real processes over gloo give the text of one."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from pathlib import Path

import psutil
import pytest

from rhizome_engine.parallel.errors import RankLostError
from rhizome_engine.parallel.ranks import Ranks
from rhizome_engine.parallel.runner import ParallelRunner
from rhizome_engine.runner import ModelRunner
from rhizome_engine.sampling.params import SamplingParams

SETTINGS = [
    SamplingParams(temperature=0.0),
    SamplingParams(temperature=1.0, seed=5),
    SamplingParams(temperature=0.9, top_p=0.9, seed=6, top_logprobs=1),
    SamplingParams(temperature=0.0, repetition_penalty=1.2),
]
CASES = {
    "llama": ("llama, grouped-query", {}, {}),
    "qwen3": ("qwen3, QK norm", {}, {}),
    "gemma2": ("gemma2, soft caps, norms after, tied", {}, {}),
    "mixture of experts": ("qwen3 moe", {}, {}),
    "int8": ("llama, grouped-query", {"quantization": "int8", "kv_cache_dtype": "float32"}, {}),
    "overlap": ("llama, grouped-query", {"overlap": True}, {"overlap": True}),
}


@pytest.fixture(scope="module")
def ranks() -> Iterator[Ranks]:
    """Two ranks for all tests that leave them as they were."""
    two = Ranks(["cpu", "cpu"])
    yield two
    two.close()
    assert not children()


def children() -> list[psutil.Process]:
    """Ranks that this process has started and that still run."""
    found = psutil.Process().children(recursive=True)
    return [one for one in found if "rhizome_engine.parallel" in " ".join(one.cmdline())]


def settings_of(**others: object) -> dict[str, object]:
    return {"dtype": "float32", "num_pages": 64, "num_threads": 2, **others}


@pytest.mark.parametrize("case", CASES)
def test_two_processes_give_the_text_of_one(
    case: str, ranks: Ranks, family: Callable[..., Path], texts_of: Callable
) -> None:
    name, settings, ways = CASES[case]
    # Rounding to int8 differs between one and two ranks; this seed's choices are clear enough for both.
    path = family(name, **({"seed": 7, "tie_word_embeddings": True} if case == "int8" else {}))
    one = texts_of(ModelRunner(path, device="cpu", **settings_of(**settings)), SETTINGS, **ways)
    runner = ParallelRunner(path, ranks, owns_ranks=False, **settings_of(**settings))
    two = texts_of(runner, SETTINGS, **ways)
    runner.close()
    assert [text.token_ids for text in two] == [text.token_ids for text in one]
    assert [len(text.token_ids) for text in one] == [12] * 4


def test_each_process_has_its_heads_and_says_where_the_model_is(
    ranks: Ranks, family: Callable[..., Path]
) -> None:
    runner = ParallelRunner(family("llama, grouped-query"), ranks, owns_ranks=False, **settings_of())
    assert runner.kv.layer(0)[0].shape[2:] == (2, 8)
    assert runner.placement == "cpu, cpu"
    runner.close()


def test_a_process_belongs_to_one_model_of_several_ranks(ranks: Ranks) -> None:
    with pytest.raises(ValueError, match="in use in this process already"):
        Ranks(["cpu", "cpu"])
    assert len(children()) == 1


def test_a_rank_that_stands_still_is_noticed(
    ranks: Ranks, family: Callable[..., Path], texts_of: Callable
) -> None:
    """The last test of the module: the ranks are lost with it."""
    runner = ParallelRunner(family("llama, grouped-query"), ranks, owns_ranks=False, **settings_of())
    (other,) = children()
    other.suspend()
    ranks.timeout_s = 1.0
    started = time.monotonic()
    with pytest.raises(RankLostError, match="got no further"):
        texts_of(runner, SETTINGS)
    assert time.monotonic() - started < 5
    with pytest.raises(RankLostError, match="got no further"):
        runner.use_idle_time()
