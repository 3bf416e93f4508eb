"""The host tier of a real runner: pages come back bit by bit, and texts are those of a runner without it."""

from __future__ import annotations

import gc

import numpy as np
import pytest
import torch

from rhizome_engine.attention.paged_kv import PagedKV
from rhizome_engine.batch import PageCopy
from rhizome_engine.core.engine_core import EngineCore
from rhizome_engine.core.events import FailedEvent, TokensEvent
from rhizome_engine.memory_size import MemorySize
from rhizome_engine.runner import ModelRunner, host_pages
from rhizome_engine.runner.host_memory import fit_host_pages, with_buffer
from rhizome_engine.runner.host_pages import HostPages
from rhizome_engine.runner.memory import KVBudgetError, MemoryNeeds
from rhizome_engine.sampling.params import SamplingParams
from rhizome_engine.scheduler.config import SchedulerConfig
from rhizome_engine.scheduler.request import Request
from rhizome_testing.checkpoints import LlamaShape, write_llama_checkpoint

WAYS = [SamplingParams(temperature=0.0), SamplingParams(temperature=0.9, top_p=0.9, seed=3)]
on_gpu = [pytest.mark.gpu, pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")]
devices = pytest.mark.parametrize("device", ["cpu", pytest.param("cuda", marks=on_gpu)])


def pages(*numbers):
    return np.array(numbers, np.int32)


@devices
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("buffer_bytes", [1, 3000, 1 << 20], ids=["one", "few", "all"])
def test_pages_are_saved_and_loaded_bit_by_bit(device, dtype, buffer_bytes, monkeypatch):
    monkeypatch.setattr(host_pages, "_BUFFER_BYTES", buffer_bytes)
    kv = PagedKV(
        num_layers=3, num_pages=12, page_size=4, num_kv_heads=2, head_dim=8, dtype=dtype,
        device=torch.device(device),
    )  # fmt: skip
    host = HostPages(kv, 9)
    torch.manual_seed(1)
    kv.data.copy_(torch.randn(kv.data.shape))
    first = kv.data.clone()
    saved, rows = pages(7, 0, 3, 4, 11), pages(5, 6, 7, 0, 8)
    host.copy(PageCopy(saved, rows + 12, 4))
    assert host.num_pages == 9
    kv.data.copy_(torch.randn(kv.data.shape))
    second = kv.data.clone()
    host.copy(PageCopy(pages(8, 7, 5) + 12, pages(2, 9, 10), 4))
    from_page = {2: 11, 9: 3, 10: 7}
    for page in range(12):
        expected = first[:, :, from_page[page]] if page in from_page else second[:, :, page]
        assert torch.equal(kv.data[:, :, page], expected), page


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory):
    return write_llama_checkpoint(tmp_path_factory.mktemp("host") / "model", LlamaShape(), seed=4)


def talk(core, conversations=5, turns=3):
    """Conversations in turn, each greedy and drawn: texts by name."""
    texts = {}
    prompts = [[(7 * number + 11 * place) % 250 for place in range(40)] for number in range(conversations)]
    for turn in range(turns):
        for number, prompt in enumerate(prompts):
            for way, params in enumerate(WAYS):
                name = f"{turn} {number} {way}"
                core.add(Request(name, prompt, params, max_tokens=8, ignore_eos=True))
                texts[name] = []
            while core.has_work:
                for event in core.step():
                    assert not isinstance(event, FailedEvent), event.error
                    if isinstance(event, TokensEvent):
                        texts[event.request.request_id] += event.token_ids
                core.check_conservation()
            prompt += texts[f"{turn} {number} 0"] + [turn]
    return texts


def talk_with_runner(checkpoint, host_memory, *, overlap=True, num_pages=16, **settings):
    config = SchedulerConfig(max_batch_size=4, max_step_tokens=64, overlap=overlap)
    runner = ModelRunner(
        checkpoint, page_size=8, num_pages=num_pages, max_num_tokens=64, max_num_rows=4, num_threads=1,
        kv_host_memory=host_memory, overlap=overlap, **settings,
    )  # fmt: skip
    core = EngineCore(runner, config, num_host_pages=runner.num_host_pages)
    return talk(core), core.load().totals


@pytest.mark.parametrize("overlap", [False, True], ids=["in_turn", "overlap"])
@pytest.mark.parametrize("kv_cache_dtype", ["float32", "bfloat16"])
def test_texts_are_the_same_and_prompts_are_not_computed_again(checkpoint, kv_cache_dtype, overlap):
    settings = {"device": "cpu", "dtype": "float32", "kv_cache_dtype": kv_cache_dtype, "overlap": overlap}
    without, computed = talk_with_runner(checkpoint, None, **settings)
    texts, totals = talk_with_runner(checkpoint, "4MiB", **settings)
    assert texts == without
    assert computed.host_loaded_tokens == 0 < totals.host_loaded_tokens
    assert totals.cache_miss_tokens < computed.cache_miss_tokens / 2
    found = totals.cache_hit_tokens + totals.cache_miss_tokens
    assert found == totals.prompt_tokens == computed.prompt_tokens


def test_recorded_steps_find_what_was_loaded_before_them(make_played):
    config = {"num_pages": 30, "max_batch_size": 4, "max_step_tokens": 64}
    played = make_played("rerun", kv_host_memory="4MiB", **config)
    texts = talk(played.core)
    assert played.runner.counts.replayed > 0 and played.core.load().totals.host_loaded_tokens > 0
    assert texts == talk(make_played("off", **config).core)


@pytest.mark.parametrize("device", [pytest.param("cuda", marks=on_gpu)])
@pytest.mark.parametrize("graphs", ["auto", "off"])
def test_texts_are_the_same_on_a_gpu(checkpoint, device, graphs):
    settings = {"device": device, "dtype": "float32", "graphs": graphs}
    without, _ = talk_with_runner(checkpoint, None, **settings)
    texts, totals = talk_with_runner(checkpoint, "64MiB", **settings)
    assert texts == without and totals.host_loaded_tokens > 0
    gc.collect()  # what was pinned is let go
    talk_with_runner(checkpoint, "64MiB", **settings)


NEEDS = MemoryNeeds(
    weights=1000, weights_name="x", workspace=lambda _: 100, max_context=64, page=512, page_size=4
)


def test_a_size_becomes_whole_pages_which_ranks_share():
    assert fit_host_pages(NEEDS, MemorySize(num_bytes=5000), 10_000, 0) == 9
    assert fit_host_pages(NEEDS, MemorySize(num_bytes=5000), 10_000, 0, ranks=2) == 4
    assert fit_host_pages(NEEDS, MemorySize(share=0.5), 10_000, 4000) == 5


def test_what_does_not_fit_is_refused_with_the_sum():
    with pytest.raises(KVBudgetError, match=r"511 B of host memory .* less than one page of 4 tokens, 512 B"):
        fit_host_pages(NEEDS, MemorySize(num_bytes=511), 10_000, 0)
    expected = (
        r"9\.77 KiB available - 3\.91 KiB weights, workspace and KV pool = 5\.86 KiB left; "
        r"wanted 52 tokens \(13 pages\) x 128 B per token = 6\.50 KiB"
    )
    with pytest.raises(KVBudgetError, match=expected):
        fit_host_pages(NEEDS, MemorySize(num_bytes=7000), 10_000, 4000)


def test_a_runner_refuses_before_it_loads_anything(checkpoint):
    with pytest.raises(KVBudgetError, match="the host tier does not fit"):
        talk_with_runner(checkpoint, "4000TiB", device="cpu")


def test_the_buffer_on_the_device_is_part_of_the_workspace(monkeypatch):
    monkeypatch.setattr(host_pages, "_BUFFER_BYTES", 2000)
    assert with_buffer(NEEDS).workspace_of(5) == 100 + 3 * 512
