"""A whole model with interpreted Triton attention against the same with SDPA: logits, text, prefixes."""

from __future__ import annotations

import pytest
import torch

from rhizome_testing.checkpoints import LlamaShape, write_llama_checkpoint

pytestmark = pytest.mark.skipif(torch.cuda.is_available(), reason="Triton is not interpreted beside a GPU")
PROMPTS = (
    [5, 9, 2, 77, 31, 8, 200, 3, 14, 15, 92, 6, 53, 58, 97, 93, 23, 84, 62, 64],
    [7, 7, 1],
    list(range(40)),
)


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory):
    shape = LlamaShape(num_attention_heads=6, head_dim=16)
    return write_llama_checkpoint(tmp_path_factory.mktemp("triton") / "model", shape)


def runners(load, checkpoint, **settings):
    return [load(checkpoint, "torch", attention=name, **settings) for name in ("sdpa", "triton")]


def test_logits_are_those_of_sdpa_whatever_the_chunks(load, drive, checkpoint):
    sdpa, triton = runners(load, checkpoint)
    ids = PROMPTS[2]
    expected = drive(sdpa).all_logits(ids, [len(ids)])
    for chunks in ([len(ids)], [17, 1, 22]):
        logits = drive(triton).all_logits(ids, chunks)
        assert float((logits - expected).abs().max() / expected.abs().max()) < 1e-4


def test_text_is_that_of_sdpa_in_mixed_steps(load, drive, sequence, checkpoint):
    """Sequences join one by one, so that some decode while others compute a chunk of their prompt."""
    texts = []
    for runner in runners(load, checkpoint, page_size=16):
        driver = drive(runner)
        sequences = [sequence(prompt) for prompt in PROMPTS]
        running = []
        for step in range(7):
            running += sequences[step : step + 1]
            driver.step((one, min(12, len(one.ids) - one.computed)) for one in running)
        texts.append([one.output for one in sequences])
    assert texts[0] == texts[1]
    assert all(len(text) > 1 for text in texts[0])


def test_a_cached_prefix_gives_the_text_of_a_computed_one(load, drive, sequence, checkpoint):
    _, triton = runners(load, checkpoint, page_size=16)
    driver = drive(triton)
    first = sequence(PROMPTS[2])
    driver.generate([first], 4)
    second = sequence(PROMPTS[2])
    second.pages, second.computed = first.pages[:2], 32  # two whole pages are shared
    driver.generate([second], 4)
    assert second.output == first.output
