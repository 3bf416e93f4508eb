"""What the runner promises beside the numbers: sizes, limits, refusals."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from rhizome_engine.batch import Batch
from rhizome_engine.runner import KVBudgetError, ModelRunner
from rhizome_engine.sampling.params import SamplingParams
from rhizome_testing.checkpoints import LlamaShape, write_llama_checkpoint
from rhizome_testing.sampling_batch import sampling_batch


@pytest.fixture(autouse=True)
def _one_thread() -> None:
    torch.set_num_threads(1)


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory):
    return write_llama_checkpoint(tmp_path_factory.mktemp("runner") / "model")


def decode_batch(num_rows, sampled_rows, vocab_size=320):
    """Rows of one token each, at position 0, each in its own page."""
    return Batch(
        token_ids=np.arange(num_rows, dtype=np.int64),
        positions=np.zeros(num_rows, np.int64),
        slot_mapping=np.arange(num_rows, dtype=np.int64) * 16,
        query_start=np.arange(num_rows + 1, dtype=np.int32),
        context_len=np.ones(num_rows, np.int32),
        page_table=np.arange(num_rows, dtype=np.int32)[:, None],
        slots=np.arange(num_rows),
        sampling=sampling_batch(
            [SamplingParams(temperature=0.0)] * len(sampled_rows),
            [1] * len(sampled_rows),
            vocab_size,
            rows=sampled_rows,
        ),
    )


def test_only_the_rows_that_ask_for_a_token_get_one(checkpoint):
    runner = ModelRunner(checkpoint, device="cpu", num_pages=8)
    in_order = runner.run(decode_batch(4, [0, 1, 2, 3])).token_ids
    assert len(set(in_order)) > 1
    assert runner.run(decode_batch(4, [1, 3])).token_ids == [in_order[1], in_order[3]]
    assert runner.run(decode_batch(4, [])).token_ids == []


def test_a_batch_beyond_the_limits_is_refused(checkpoint):
    runner = ModelRunner(checkpoint, device="cpu", num_pages=8, max_num_tokens=3, max_num_rows=3)
    with pytest.raises(
        ValueError, match="4 tokens in 4 rows, but the runner was made for at most 3 tokens in 3"
    ):
        runner.run(decode_batch(4, [0]))


def test_the_pool_has_the_size_that_was_asked_for(checkpoint):
    by_pages = ModelRunner(checkpoint, device="cpu", num_pages=10, page_size=32)
    assert (by_pages.num_pages, by_pages.page_size) == (10, 32)
    assert by_pages.kv.data.shape == (2, 2, 10, 32, 2, 16)
    bytes_per_page = by_pages.kv.data.nbytes // 10
    by_bytes = ModelRunner(checkpoint, device="cpu", page_size=32, kv_memory=7 * bytes_per_page + 5)
    assert by_bytes.num_pages == 7


def test_without_a_size_the_pool_is_bounded_by_what_is_useful(checkpoint):
    runner = ModelRunner(checkpoint, device="cpu", max_num_rows=2)
    assert runner.num_pages == 2 * 2 * 2048 // 16


def test_the_pool_may_be_given_as_people_write_memory(checkpoint):
    page = ModelRunner(checkpoint, device="cpu", num_pages=1).kv.data.nbytes
    assert ModelRunner(checkpoint, device="cpu", kv_memory="1MiB").num_pages == 2**20 // page
    some = ModelRunner(checkpoint, device="cpu", kv_memory="0.1%").num_pages
    more = ModelRunner(checkpoint, device="cpu", kv_memory="0.2%").num_pages
    assert 1.8 * some < more < 2.2 * some


def test_a_pool_that_does_not_fit_is_refused_with_the_arithmetic(checkpoint):
    arithmetic = r"available - .* weights \(.*\) - .* workspace = .* left; "
    wanted = r"wanted 16000000000 tokens \(1000000000 pages\) x 256 B per token = 3814.70 GiB"
    with pytest.raises(KVBudgetError, match=arithmetic + wanted):
        ModelRunner(checkpoint, device="cpu", num_pages=10**9, kv_cache_dtype="bfloat16")
    with pytest.raises(KVBudgetError, match=r"10 B of KV memory is less than one page of 16 tokens, "):
        ModelRunner(checkpoint, device="cpu", kv_memory=10)


def test_the_number_formats_are_what_was_asked_for(checkpoint):
    runner = ModelRunner(
        checkpoint, device="cpu", num_pages=4, quantization="int8", kv_cache_dtype="float16", kernels="torch"
    )
    assert runner.weights_name == "int8"
    assert runner.kv.data.dtype == torch.float16
    assert runner.numerics.kernels.name == "torch"


@pytest.mark.parametrize(
    ("setting", "message"),
    [
        ({"device": "tpu"}, "device must be auto, cpu, cuda or cuda:N, not 'tpu'"),
        ({"dtype": "int3"}, "dtype must be auto, float32, bfloat16, float16, not 'int3'"),
        ({"attention": "magic"}, "attention must be auto, native, flash_attn, triton, sdpa, not 'magic'"),
        ({"page_size": 0}, "page_size must be at least 1, not 0"),
        ({"kv_memory": 10**6}, "give num_pages or kv_memory, not both"),
        (
            {"num_pages": None, "kv_memory": "much"},
            "a size such as 4GiB, or a share of what is left such as 60%",
        ),
        ({"kv_cache_dtype": "int3"}, "kv_cache_dtype must be auto, float32, bfloat16, float16, not 'int3'"),
        ({"kernels": "magic"}, "kernels must be auto, native, triton, torch, not 'magic'"),
        ({"quantization": "int3"}, "quantization must be none, int8, fp8, int4, not 'int3'"),
    ],
)
def test_an_unusable_setting_is_refused_by_name(checkpoint, setting, message):
    with pytest.raises(ValueError, match=message):
        ModelRunner(checkpoint, **{"device": "cpu", "num_pages": 4, **setting})


@pytest.mark.skipif(torch.cuda.is_available(), reason="needs a machine without CUDA")
def test_cuda_is_refused_where_there_is_none_and_auto_falls_back(checkpoint):
    with pytest.raises(ValueError, match="device 'cuda' was asked for, but there is no usable CUDA device"):
        ModelRunner(checkpoint, device="cuda")
    runner = ModelRunner(checkpoint, num_pages=4)
    assert (runner.device.type, runner.numerics.weight_dtype) == ("cpu", torch.float32)


def test_a_shorter_context_takes_the_short_factors_of_longrope(tmp_path):
    scaling = {
        "rope_type": "longrope",
        "short_factor": [1.0] * 8,
        "long_factor": [4.0] * 8,
        "original_max_position_embeddings": 64,
    }
    shape = LlamaShape(max_position_embeddings=256, rope_scaling=scaling)
    path = write_llama_checkpoint(tmp_path, shape)
    positions = torch.arange(50)

    def angles(max_context_tokens):
        runner = ModelRunner(path, device="cpu", num_pages=8, max_context_tokens=max_context_tokens)
        assert runner.config.max_position_embeddings == min(max_context_tokens or 256, 256)
        cos, sin = runner.model.ropes[0].table(positions)
        return torch.atan2(sin, cos)[1]

    assert torch.allclose(angles(None) * 4, angles(64))
    assert torch.equal(angles(None), angles(65))
