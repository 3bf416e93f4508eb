"""Whatever can be shared out gives the text of one rank, and every rank keeps the same tokens."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch

from rhizome_engine.batch import Batch
from rhizome_engine.runner import ModelRunner, model_runner
from rhizome_engine.runner.agreed_recorder import AgreedRecorder
from rhizome_engine.runner.recording import RecordingError, RerunRecorder
from rhizome_engine.runner.static_step import End
from rhizome_engine.sampling import static_choice, token_table
from rhizome_engine.sampling.params import SamplingParams
from rhizome_testing.reference_attention import ReferenceBackend
from rhizome_testing.sampling_batch import sampling_batch
from rhizome_testing.thread_ranks import ThreadGroup, in_threads

SETTINGS = [
    SamplingParams(temperature=0.0),
    SamplingParams(temperature=1.0, seed=5),
    SamplingParams(temperature=0.9, top_p=0.9, seed=6),
    SamplingParams(temperature=0.7, top_k=40, min_p=0.01, seed=7, repetition_penalty=1.2),
    SamplingParams(temperature=0.0, top_logprobs=2),
    SamplingParams(temperature=1.0, seed=8, logit_bias={5: 3.0}, bad_words=((7,), (8, 9)), top_logprobs=0),
    SamplingParams(temperature=1.0, seed=9, allowed_token_ids=tuple(range(40, 330, 3))),
]
MARGIN = 1e-3
ROUNDING = 3e-5
"""What logits of one and of several ranks differ by; greedy choices must be clearer than that by far."""


def load(path: Path, **settings: object) -> ModelRunner:
    return ModelRunner(path, device="cpu", dtype="float32", num_pages=64, num_threads=1, **settings)


CASES = {
    "llama, grouped-query, 2": ("llama, grouped-query", 2, {}, "auto"),
    "llama, grouped-query, 4, torch": ("llama, grouped-query", 4, {}, "torch"),
    "more ranks than key-value heads": ("llama, grouped-query", 8, {"num_key_value_heads": 2}, "auto"),
    "biases": ("llama, biases, one key-value head, tied", 4, {}, "auto"),
    "qwen3": ("qwen3, QK norm", 4, {}, "auto"),
    "gemma2": ("gemma2, soft caps, norms after, tied", 2, {}, "auto"),
    "mixture of experts": ("qwen3 moe", 2, {}, "auto"),
    "fused": ("phi3, fused", 4, {}, "auto"),
    "multipliers": ("granite, multipliers", 2, {"seed": 1}, "torch"),
}


@pytest.mark.parametrize("case", CASES)
def test_the_text_is_that_of_one_rank(case: str, family: Callable[..., Path], texts_of: Callable) -> None:
    name, size, options, kernels = CASES[case]
    path = family(name, **options)
    one = texts_of(load(path, kernels=kernels), SETTINGS)
    greedy = texts_of(load(path, kernels=kernels), [SamplingParams(temperature=0.0, top_logprobs=2)])
    assert greedy[0].token_ids == one[0].token_ids
    assert min(greedy[0].margins + one[4].margins) > MARGIN, "nearly a tie; take another seed"
    assert len({token for text in one for token in text.token_ids}) > 20, "the same token again and again"

    def rank(group: ThreadGroup) -> tuple[list, torch.Tensor, int]:
        runner = load(path, kernels=kernels, group=group)
        texts = texts_of(runner, SETTINGS)
        return texts, runner._computer._tokens.tokens.clone(), runner.model.targets.num_parameters

    results = in_threads(size, rank)
    assert [text.token_ids for text in results[0][0]] == [text.token_ids for text in one]
    for texts, table, num_parameters in results:
        assert [text.token_ids for text in texts] == [text.token_ids for text in one]
        assert torch.equal(table, results[0][1])
        assert num_parameters == load(path).model.targets.num_parameters


def test_ranks_record_and_replay_the_same_steps(
    family: Callable[..., Path], texts_of: Callable, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = family("llama, grouped-query")
    chosen = (SETTINGS[:2], SETTINGS[2:3], SETTINGS[2:4], SETTINGS[4:])
    alone = load(path)
    expected = [[text.token_ids for text in texts_of(alone, few)] for few in chosen]
    monkeypatch.setattr(model_runner, "make_attention", lambda _, kv, ropes: ReferenceBackend(kv, ropes))
    for module in (static_choice, token_table):
        monkeypatch.setattr(module, "why_not", lambda _: "threads cannot share an interpreter")

    def rank(group: ThreadGroup) -> set[End]:
        runner = load(path, group=group, kernels="torch", attention="sdpa", graphs="rerun")
        for few, texts in zip(chosen, expected, strict=True):
            assert [text.token_ids for text in texts_of(runner, few)] == texts
            while runner.use_idle_time():
                pass
            replayed, eager = runner.counts.replayed, runner.counts.eager
            assert [text.token_ids for text in texts_of(runner, few)] == texts
            # A prompt beside rows that decode is never replayed.
            assert runner.counts.replayed >= replayed + 10 and runner.counts.eager <= eager + 1
        return {kind.end for kind in runner._computer._recorded._recordings}

    for ends in in_threads(2, rank):
        assert ends == {End.OF_RANKS, End.TOKENS, End.PENALISED, End.HIDDEN}


def test_a_step_is_recorded_by_all_ranks_or_by_none() -> None:
    def outcome(group: ThreadGroup) -> str:
        def compute() -> torch.Tensor:
            if group.rank == 1:
                raise MemoryError("no memory for the graph")
            return torch.ones(1)

        recorder = AgreedRecorder(RerunRecorder(), group)
        with pytest.raises(RecordingError) as caught:
            recorder.record(compute)
        assert recorder.record(lambda: torch.ones(1)).output == 1
        return str(caught.value)

    assert in_threads(2, outcome) == [
        "another rank could not record it; its log says why",
        "no memory for the graph",
    ]


def one_step(num_tokens: int) -> Batch:
    """A prompt in pages that are not in order, none of it sampled."""
    span = np.arange(num_tokens)
    pages = np.array([5, 2, 9, 7])
    return Batch(
        token_ids=(span * 11 + 3) % 330,
        positions=span,
        slot_mapping=pages[span // 16] * 16 + span % 16,
        query_start=np.array([0, num_tokens], np.int32),
        context_len=np.array([num_tokens], np.int32),
        page_table=pages[None].astype(np.int32),
        slots=np.zeros(1, np.int64),
        sampling=sampling_batch([], [], 330),
    )


@pytest.mark.parametrize(
    "name", ["llama, grouped-query", "gemma2, soft caps, norms after, tied", "qwen3 moe"]
)
def test_logits_differ_by_rounding_only(name: str, family: Callable[..., Path]) -> None:
    path, batch = family(name), one_step(50)
    expected = load(path).logits(batch)
    assert expected.shape == (50, 330)
    for logits in in_threads(2, lambda group: load(path, group=group).logits(batch)):
        assert (logits - expected).abs().max() < ROUNDING


QUANTISED = {
    "int4": {},
    "int8": {},
    "fp8": {"kernels": "torch"},
}


@pytest.mark.parametrize("quantization", QUANTISED)
def test_ranks_round_no_worse_than_one(quantization: str, family: Callable[..., Path]) -> None:
    """Each rounds its own columns, with scales of its own: other numbers, but as near to the exact ones."""
    settings = {"quantization": quantization, "kv_cache_dtype": "float32", **QUANTISED[quantization]}
    path, batch = family("llama, grouped-query", intermediate_size=128, hidden_size=128), one_step(50)
    exact = load(path).logits(batch)
    alone = (load(path, **settings).logits(batch) - exact).norm()
    for logits in in_threads(2, lambda group: load(path, group=group, **settings).logits(batch)):
        assert 0 < (logits - exact).norm() < 1.1 * alone
