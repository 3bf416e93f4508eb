import subprocess
import sys

import pytest
import torch
import transformers

from rhizome_engine import LLM, SamplingParams
from rhizome_engine.scheduler.config import SchedulerConfig
from rhizome_testing.checkpoints import LlamaShape, write_llama_checkpoint
from rhizome_transport.errors import EngineError

GREEDY = SamplingParams(temperature=0.0)


@pytest.fixture(scope="module")
def llm(tmp_path_factory):
    torch.set_num_threads(1)
    shape = LlamaShape(tie_word_embeddings=False)
    path = write_llama_checkpoint(tmp_path_factory.mktemp("model"), shape, seed=4)
    llm = LLM(path, device="cpu", num_pages=256, scheduler=SchedulerConfig(max_batch_size=4))
    llm.path = path
    return llm


def test_answers_many_prompts_in_their_order(llm):
    prompts = [f"prompt number {number}" for number in range(10)]
    together = llm.generate(prompts, GREEDY, max_tokens=8, ignore_eos=True)
    alone = [llm.generate(prompt, GREEDY, max_tokens=8, ignore_eos=True)[0] for prompt in prompts]
    assert [c.token_ids for c in together] == [c.token_ids for c in alone]
    for completion, prompt in zip(together, prompts, strict=True):
        assert completion.prompt_token_ids == llm.tokenizer.encode(prompt, add_special_tokens=True)
        # A character that the last token leaves incomplete is dropped rather than shown broken.
        whole = llm.tokenizer.decode(completion.token_ids)
        assert completion.text.rstrip("\ufffd") == whole.rstrip("\ufffd")
        assert (completion.finish_reason, completion.matched_stop) == ("length", None)
        assert completion.usage.completion_tokens == 8 and completion.timings.prefill_s > 0
    assert alone[0].usage.cached_tokens > 0
    llm.core.check_conservation()


def test_token_ids_are_prompts_too(llm):
    ids = llm.tokenizer.encode("hello", add_special_tokens=True)
    one = llm.generate(ids, GREEDY, max_tokens=4)
    several = llm.generate([ids, "hello"], GREEDY, max_tokens=4)
    assert one[0].text == several[0].text == several[1].text


def test_a_stop_string_ends_the_answer_and_is_not_part_of_it(llm):
    whole = llm.generate("tell me", GREEDY, max_tokens=24, ignore_eos=True)[0]
    position = next(i for i in range(3, len(whole.text) - 2) if whole.text[i].isascii())
    stop = whole.text[position : position + 2]
    cut = llm.generate("tell me", GREEDY, max_tokens=24, ignore_eos=True, stop=[stop])[0]
    assert cut.text == whole.text[: whole.text.index(stop)]
    assert (cut.finish_reason, cut.matched_stop) == ("stop", stop)
    assert whole.token_ids[: len(cut.token_ids)] == cut.token_ids and len(cut.token_ids) < 24
    assert llm.core.load().running_requests == 0


def test_a_stop_token_ends_the_answer(llm):
    whole = llm.generate("tell me", GREEDY, max_tokens=8, ignore_eos=True)[0]
    stop = whole.token_ids[5]
    cut = llm.generate("tell me", GREEDY, max_tokens=8, ignore_eos=True, stop_token_ids=[stop])[0]
    assert cut.matched_stop == stop and cut.finish_reason == "stop"
    assert cut.token_ids == whole.token_ids[: whole.token_ids.index(stop)]


def test_log_probabilities_and_seeds(llm):
    params = SamplingParams(temperature=1.0, seed=11, top_logprobs=3)
    first, second = llm.generate(["a", "a"], params, max_tokens=6, ignore_eos=True)
    assert first.token_ids == second.token_ids
    assert len(first.logprobs) == 6 and len(first.logprobs[0].top) == 3
    assert all(entry.logprob <= 0 for entry in first.logprobs)


def test_chat_goes_through_the_template(llm):
    conversation = [{"role": "user", "content": "Hi"}]
    answer = llm.chat(conversation, GREEDY, max_tokens=4)[0]
    rendered = llm.tokenizer.chat_template().render(conversation)
    assert answer.prompt_token_ids == llm.tokenizer.encode(rendered)
    assert llm.chat([conversation, conversation], GREEDY, max_tokens=4)[1].text == answer.text


def test_a_refused_prompt_leaves_nothing_running(llm):
    with pytest.raises(EngineError, match="context window"):
        llm.generate(["fine", "x" * 5000], GREEDY, max_tokens=4)
    assert not llm.core.has_work
    llm.core.check_conservation()
    assert len(llm.generate("fine", GREEDY, max_tokens=4, ignore_eos=True)[0].token_ids) == 4


def test_the_package_imports_without_torch():
    script = "import sys, rhizome_engine; assert 'torch' not in sys.modules; rhizome_engine.SamplingParams()"
    subprocess.run([sys.executable, "-c", script], check=True)


def reference_logprobs(path, ids):
    model = transformers.AutoModelForCausalLM.from_pretrained(path, dtype=torch.float32)
    with torch.no_grad():
        return model(torch.tensor([ids])).logits[0].log_softmax(dim=-1)


def test_prompt_logprobs_are_the_models_own_whether_the_prefix_is_cached_or_not(llm):
    prompt = "the quick brown fox jumps over the lazy dog, twice " * 2
    ids = llm.tokenizer.encode(prompt, add_special_tokens=True)
    expected = reference_logprobs(llm.path, ids)
    llm.core.flush_cache()
    for visit in ("cold", "cached"):
        scored = llm.generate(prompt, GREEDY, max_tokens=0, prompt_logprobs=3)[0]
        assert (scored.token_ids, scored.finish_reason) == ([], "length"), visit
        assert len(scored.prompt_logprobs) == len(ids) and scored.prompt_logprobs[0] is None
        for position, scores in enumerate(scored.prompt_logprobs[1:], start=1):
            row = expected[position - 1]
            assert scores.logprob == pytest.approx(float(row[ids[position]]), abs=1e-4)
            best = row.topk(3)
            assert [token for token, _ in scores.top] == best.indices.tolist()
            assert [value for _, value in scores.top] == pytest.approx(best.values.tolist(), abs=1e-4)
        assert llm.generate(prompt, GREEDY, max_tokens=1)[0].usage.cached_tokens > 90


def test_several_answers_share_the_prompts_pages(llm):
    prompt = list(range(1, 130))
    llm.core.flush_cache()
    seeded = SamplingParams(temperature=1.0, seed=3)
    before = llm.core.load().totals.cache_miss_tokens
    answers = llm.generate(prompt, seeded, n=4, max_tokens=6, ignore_eos=True)
    assert [answer.index for answer in answers] == [0, 1, 2, 3]
    assert len({tuple(answer.token_ids) for answer in answers}) == 4
    assert llm.core.load().totals.cache_miss_tokens - before < len(prompt) + 4 * 16
    assert all(answer.usage.cached_tokens >= 128 for answer in answers[1:])
    for index, answer in enumerate(answers):
        alone = SamplingParams(temperature=1.0, seed=3 + index)
        assert llm.generate(prompt, alone, max_tokens=6, ignore_eos=True)[0].token_ids == answer.token_ids
    with pytest.raises(ValueError, match="n must be between 1 and 1024, not 0"):
        llm.generate(prompt, n=0)


def test_echo_puts_the_prompt_first(llm):
    plain = llm.generate("hello there", GREEDY, max_tokens=5)[0]
    echoed = llm.generate("hello there", GREEDY, max_tokens=5, echo=True, prompt_logprobs=0)[0]
    assert echoed.text == "hello there" + plain.text and echoed.token_ids == plain.token_ids
    assert len(echoed.prompt_logprobs) == len(echoed.prompt_token_ids)
