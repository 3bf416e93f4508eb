"""Vectors of the real engine: transformers' own, however they are computed."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
import transformers

from rhizome_engine import LLM, SamplingParams
from rhizome_engine.scheduler.config import SchedulerConfig
from rhizome_testing.checkpoints import LlamaShape, write_llama_checkpoint
from rhizome_transport.errors import EngineError

DEMO = Path(__file__).parents[3] / "models" / "demo"
POOLINGS = ("mean", "last_token", "cls")
RNG = np.random.default_rng(8)
LENGTHS = (1, 2, 15, 16, 17, 33, 100, 130)
INPUTS = [RNG.integers(0, 256, length).tolist() for length in LENGTHS]
SHAPES = {
    "grouped": LlamaShape(),
    "wide": LlamaShape(hidden_size=96, num_attention_heads=6, num_key_value_heads=6, num_hidden_layers=3),
    "llama3 rope": LlamaShape(
        rope_scaling={
            "rope_type": "llama3",
            "factor": 8.0,
            "low_freq_factor": 1.0,
            "high_freq_factor": 4.0,
            "original_max_position_embeddings": 64,
        }
    ),
}


def pooled(states, pooling, normalize=True):
    vector = {"mean": states.mean(0), "last_token": states[-1], "cls": states[0]}[pooling]
    return (torch.nn.functional.normalize(vector, dim=0) if normalize else vector).numpy()


def expected_states(path, inputs):
    model = transformers.AutoModel.from_pretrained(path, dtype=torch.float32)
    with torch.no_grad():
        return [model(torch.tensor([ids])).last_hidden_state[0] for ids in inputs]


def load(path, **limits):
    config = SchedulerConfig(**{"max_batch_size": 8, "max_step_tokens": 64, **limits})
    return LLM(path, device="cpu", dtype="float32", num_pages=256, num_threads=1, scheduler=config)


@pytest.fixture(scope="module", params=[*SHAPES, "demo"])
def checkpoint(request, tmp_path_factory):
    if request.param == "demo":
        return DEMO
    path = tmp_path_factory.mktemp("embed") / "model"
    return write_llama_checkpoint(path, SHAPES[request.param], seed=6)


@pytest.fixture(scope="module")
def states(checkpoint):
    return expected_states(checkpoint, INPUTS)


@pytest.mark.parametrize("overlap", [False, True])
def test_vectors_are_transformers_own(checkpoint, states, overlap):
    llm = load(checkpoint, overlap=overlap)
    for pooling in POOLINGS:
        for normalize in (True, False):
            embeddings = llm.embed(INPUTS, pooling=pooling, normalize=normalize)
            for embedding, state, ids in zip(embeddings, states, INPUTS, strict=True):
                expected = pooled(state, pooling, normalize)
                scale = np.abs(expected).max() if not normalize else 1.0
                assert embedding.values.dtype == np.float32
                assert np.abs(embedding.values - expected).max() <= 1e-5 * scale
                assert embedding.token_ids == ids and embedding.usage.prompt_tokens == len(ids)
    llm.core.check_conservation()


@pytest.fixture(scope="module")
def tiny(tmp_path_factory):
    return write_llama_checkpoint(tmp_path_factory.mktemp("tiny") / "model", seed=6)


@pytest.fixture(scope="module")
def alone(tiny):
    """Each input by itself, in one step."""
    llm = load(tiny, max_step_tokens=512)
    return {p: [llm.embed(ids, pooling=p)[0].values for ids in INPUTS] for p in POOLINGS}


@pytest.mark.parametrize("pooling", POOLINGS)
@pytest.mark.parametrize("limits", [{"max_step_tokens": 1}, {"max_step_tokens": 7}, {"max_chunk_tokens": 5}])
def test_chunks_and_neighbours_change_nothing(tiny, alone, pooling, limits):
    llm = load(tiny, **limits)
    for embedding, expected in zip(llm.embed(INPUTS, pooling=pooling), alone[pooling], strict=True):
        assert np.abs(embedding.values - expected).max() <= 2e-6


@pytest.mark.parametrize("pooling", POOLINGS)
def test_cached_prefixes_change_nothing(tiny, alone, pooling):
    llm = load(tiny)
    llm.generate(INPUTS, SamplingParams(temperature=0.0), max_tokens=4, ignore_eos=True)
    embeddings = llm.embed(INPUTS, pooling=pooling)
    cached = [embedding.usage.cached_tokens for embedding in embeddings]
    assert cached[-1] > 100 if pooling == "last_token" else not any(cached)
    for embedding, expected in zip(embeddings, alone[pooling], strict=True):
        assert np.abs(embedding.values - expected).max() <= 2e-6


def test_preemption_changes_nothing(tiny, alone):
    config = SchedulerConfig(max_batch_size=8, max_step_tokens=8)
    llm = LLM(tiny, device="cpu", page_size=4, num_pages=60, num_threads=1, scheduler=config)
    # These grow while the inputs are computed, and came first.
    streams = [llm.stream([1, 2, number], max_tokens=150, ignore_eos=True) for number in range(3)]
    for stream in streams:
        next(stream)
    embeddings = llm.embed(INPUTS, pooling="mean")
    for stream in streams:
        assert len(list(stream)[-1].completion.token_ids) == 150
    assert sum(embedding.usage.preemptions for embedding in embeddings) > 0
    for embedding, expected in zip(embeddings, alone["mean"], strict=True):
        assert np.abs(embedding.values - expected).max() <= 2e-6
    llm.core.check_conservation()


def test_text_beside_a_stream(tiny, alone):
    llm = load(tiny)
    text = llm.generate("hello", SamplingParams(temperature=0.0), max_tokens=30, ignore_eos=True)[0].text
    stream = llm.stream("hello", SamplingParams(temperature=0.0), max_tokens=30, ignore_eos=True)
    pieces = [next(stream).text]
    together = llm.embed(INPUTS, pooling="cls")
    assert "".join([*pieces, *(delta.text for delta in stream)]) == text
    for embedding, expected in zip(together, alone["cls"], strict=True):
        assert np.abs(embedding.values - expected).max() <= 2e-6
    ids = llm.tokenizer.encode("some words", add_special_tokens=True)
    by_text, by_ids = llm.embed(["some words", ids])
    assert by_text.token_ids == ids and np.array_equal(by_text.values, by_ids.values)
    assert np.linalg.norm(by_text.values) == pytest.approx(1.0, abs=1e-6)


def test_the_checkpoints_pooling_is_the_default(tmp_path):
    path = write_llama_checkpoint(tmp_path / "model")
    (path / "1_Pooling").mkdir()
    (path / "1_Pooling" / "config.json").write_text(json.dumps({"pooling_mode_lasttoken": True}))
    llm = load(path)
    chosen, default = llm.embed([5, 6, 7], pooling="last_token"), llm.embed([5, 6, 7])
    assert np.array_equal(chosen[0].values, default[0].values)
    assert not np.allclose(default[0].values, llm.embed([5, 6, 7], pooling="mean")[0].values)


def test_refusals_name_the_input_and_leave_nothing_running(tiny):
    llm = load(tiny)
    with pytest.raises(EngineError, match=r"inputs\[1\]: the prompt is empty"):
        llm.embed([[1, 2], []])
    with pytest.raises(EngineError, match=r"inputs\[2\]: the prompt has 5000 tokens"):
        llm.embed([[1], [2], [3] * 5000])
    with pytest.raises(ValueError, match="'mean', 'last_token', 'cls', not 'max'"):
        llm.embed([[1]], pooling="max")
    assert not llm.core.has_work and llm.embed([]) == []


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
def test_other_number_formats_stay_near(tiny, alone, dtype):
    llm = LLM(tiny, device="cpu", dtype=dtype, num_pages=64, num_threads=1)
    for embedding, expected in zip(llm.embed(INPUTS), alone["mean"], strict=True):
        assert embedding.values.dtype == np.float32
        assert float(embedding.values @ expected) > 0.99
