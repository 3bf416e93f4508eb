"""Perplexity through the engine equals that of transformers on the same windows."""

from __future__ import annotations

import math
import statistics
import warnings
from pathlib import Path

import pytest
import torch

from rhizome_engine.evaluation.perplexity import PerplexityRun, TextScore, bos_of_texts
from rhizome_engine.llm import LLM
from rhizome_testing.checkpoints import LlamaShape, write_llama_checkpoint
from rhizome_testing.running_stack import DEMO_MODEL

TEXT = (
    "The capital of France is Paris. 7 + 5 = 12\n你好！Spell banana: b-a-n-a-n-a. "
    "Count: 1, 2, 3, 4, 5, 6, 7, 8, 9, 10. The colour of the sky is blue; snow is white.\n"
) * 2


@pytest.fixture(scope="module")
def random_checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_llama_checkpoint(tmp_path_factory.mktemp("checkpoint"), LlamaShape(), seed=3)


def reference_nlls(model: Path, windows: list[tuple[list[int], int]]) -> list[float]:
    """Negative log likelihoods of the scored tokens, by transformers in float32, one window at a time."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        from transformers import AutoModelForCausalLM

        network = AutoModelForCausalLM.from_pretrained(model, dtype=torch.float32).eval()
    found: list[float] = []
    for ids, first_scored in windows:
        with torch.inference_mode():
            logits = network(torch.tensor([ids])).logits[0].double()
        logprobs = logits.log_softmax(-1)
        found += [-float(logprobs[place - 1, ids[place]]) for place in range(first_scored, len(ids))]
    return found


@pytest.mark.parametrize("context, stride", [(64, 16), (100, 90)])
@pytest.mark.parametrize("checkpoint", ["demo", "random"])
def test_equals_transformers(
    checkpoint: str, random_checkpoint: Path, context: int, stride: int | None
) -> None:
    path = DEMO_MODEL if checkpoint == "demo" else random_checkpoint
    run = PerplexityRun(LLM(path, dtype="float32", num_pages=256), TEXT, context, stride)
    done = list(run.run())
    assert done[-1] == len(run.windows) > 1
    expected = reference_nlls(path, [(w.token_ids, w.first_scored) for w in run.windows])
    report = run.score.to_json()
    assert report["tokens_scored"] == len(expected)
    assert report["nll_per_token"] == pytest.approx(statistics.fmean(expected), rel=1e-4)
    assert report["perplexity"] == pytest.approx(math.exp(statistics.fmean(expected)), rel=1e-4)
    error = statistics.stdev(expected) / math.sqrt(len(expected))
    assert report["nll_per_token_standard_error"] == pytest.approx(error, rel=1e-3)
    assert report["perplexity_standard_error"] == pytest.approx(report["perplexity"] * error, rel=1e-3)
    num_bytes = len(TEXT.encode()) - (0 if bos_of_texts(run.llm.tokenizer) is not None else 1)
    assert report["bytes_scored"] == num_bytes
    assert report["bits_per_byte"] == pytest.approx(sum(expected) / math.log(2) / num_bytes, rel=1e-4)


def test_the_bos_token_comes_first_where_the_tokenizer_adds_it(random_checkpoint: Path) -> None:
    """Both tokenizers name a BOS token; windows have it if texts get it, and it is never scored."""
    for path in (DEMO_MODEL, random_checkpoint):
        llm = LLM(path, num_pages=64)
        with_special = llm.tokenizer.encode("Hello", add_special_tokens=True)
        added = with_special[0] == llm.tokenizer.bos_id
        (window,) = PerplexityRun(llm, "Hello world").windows
        assert (window.token_ids[0] == llm.tokenizer.bos_id) is added
        assert window.first_scored == 1


def test_an_impossible_window_is_refused(random_checkpoint: Path) -> None:
    llm = LLM(random_checkpoint, num_pages=4)
    with pytest.raises(ValueError, match="context is 64 tokens; a window of 65 does not fit"):
        PerplexityRun(llm, TEXT, 65)
    with pytest.raises(ValueError, match="at least 2 are needed"):
        PerplexityRun(llm, "a")


def test_a_score_of_uniform_guesses_is_the_vocabulary() -> None:
    score = TextScore()
    score.add([-math.log(50)] * 7, text_bytes=14)
    score.add([-math.log(50)] * 3, text_bytes=6)
    report = score.to_json()
    assert report["perplexity"] == pytest.approx(50)
    assert report["perplexity_standard_error"] == pytest.approx(0, abs=1e-4)
    assert report["bits_per_byte"] == pytest.approx(math.log2(50) / 2)
