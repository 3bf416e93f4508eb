"""One answer, seen while it grows."""

from __future__ import annotations

import pytest

from rhizome_engine import LLM, SamplingParams
from rhizome_grammar.spec import Grammar
from rhizome_testing.checkpoints import LlamaShape, write_llama_checkpoint
from rhizome_transport.errors import EngineError

GREEDY = SamplingParams(temperature=0.0)


@pytest.fixture(scope="module")
def llm(tmp_path_factory):
    shape = LlamaShape(tie_word_embeddings=False)
    path = write_llama_checkpoint(tmp_path_factory.mktemp("model"), shape, seed=4)
    return LLM(path, device="cpu", num_pages=256, num_threads=1)


@pytest.fixture(autouse=True)
def _nothing_is_left(llm):
    yield
    assert not llm.core.has_work and llm.core.load().kv_pages_in_use == 0
    llm.core.check_conservation()


def test_the_pieces_are_the_whole_answer(llm):
    whole = llm.generate("tell me", GREEDY, max_tokens=24, ignore_eos=True)[0]
    deltas = list(llm.stream("tell me", GREEDY, max_tokens=24, ignore_eos=True))
    assert len(deltas) > 20 and all(delta.completion is None for delta in deltas[:-1])
    last = deltas[-1].completion
    assert "".join(delta.text for delta in deltas) == whole.text == last.text
    assert [token for delta in deltas for token in delta.token_ids] == whole.token_ids == last.token_ids
    assert (last.finish_reason, last.usage.completion_tokens) == ("length", 24)


def test_it_grows_step_by_step(llm):
    stream = llm.stream("tell me", GREEDY, max_tokens=50, ignore_eos=True)
    next(stream)
    assert llm.core.load().totals.generated_tokens - llm.core.load().totals.forced_tokens < 10**6
    assert llm.core.load().running_requests == 1
    stream.close()


def test_leaving_the_loop_ends_the_request(llm):
    before = llm.core.load().totals.aborted
    for _ in llm.stream("tell me", GREEDY, max_tokens=500, ignore_eos=True):
        break
    assert llm.core.load().totals.aborted == before + 1


def test_a_stream_that_is_collected_in_the_middle_of_a_step_ends_after_it(llm, monkeypatch):
    left = [llm.stream("tell me", GREEDY, max_tokens=500, ignore_eos=True)]
    next(left[0])
    launch = llm.core._runner.launch

    def launch_and_collect(batch):
        left.clear()
        llm.core.check_conservation()
        return launch(batch)

    monkeypatch.setattr(llm.core._runner, "launch", launch_and_collect)
    assert len(llm.generate("hello", GREEDY, max_tokens=5, ignore_eos=True)[0].token_ids) == 5
    assert llm.core.load().running_requests == 0


def test_a_stop_string_is_never_shown(llm):
    whole = llm.generate("tell me", GREEDY, max_tokens=24, ignore_eos=True)[0]
    position = next(i for i in range(3, len(whole.text) - 2) if whole.text[i].isascii())
    stop = whole.text[position : position + 2]
    deltas = list(llm.stream("tell me", GREEDY, max_tokens=24, ignore_eos=True, stop=[stop]))
    assert "".join(delta.text for delta in deltas) == whole.text[: whole.text.index(stop)]
    assert deltas[-1].completion.matched_stop == stop


def test_what_comes_with_the_tokens(llm):
    params = SamplingParams(temperature=0.0, top_logprobs=2)
    deltas = list(llm.stream("hello", params, max_tokens=5, echo=True, prompt_logprobs=0, ignore_eos=True))
    last = deltas[-1].completion
    logprobs = [entry for delta in deltas for entry in delta.logprobs or ()]
    assert len(logprobs) == 5 and logprobs == last.logprobs
    assert last.text.startswith("hello") and "".join(delta.text for delta in deltas) == last.text
    assert len(last.prompt_logprobs) == len(last.prompt_token_ids)


def test_several_streams_and_other_calls_at_once(llm):
    prompts = [f"number {number}" for number in range(3)]
    expected = [c.text for c in llm.generate(prompts, GREEDY, max_tokens=20, ignore_eos=True)]
    streams = [llm.stream(prompt, GREEDY, max_tokens=20, ignore_eos=True) for prompt in prompts]
    texts = [next(stream).text for stream in streams]
    assert llm.generate(prompts, GREEDY, max_tokens=20, ignore_eos=True)[1].text == expected[1]
    for number, stream in enumerate(streams):
        texts[number] += "".join(delta.text for delta in stream)
    assert texts == expected


def test_a_refused_prompt_says_why(llm):
    with pytest.raises(EngineError, match="context window"):
        next(llm.stream("x" * 5000, GREEDY))


def test_a_conversation_can_be_streamed(llm):
    conversation = [{"role": "user", "content": "Hi"}]
    answer = llm.chat(conversation, GREEDY, max_tokens=6)[0]
    deltas = llm.stream(llm.chat_prompt(conversation), GREEDY, max_tokens=6)
    assert "".join(delta.text for delta in deltas) == answer.text


def test_a_grammar_holds_while_it_streams(llm):
    grammar = Grammar("choice", choices=("yes", "no"))
    deltas = list(llm.stream("well?", GREEDY, max_tokens=20, grammar=grammar))
    assert "".join(delta.text for delta in deltas) in ("yes", "no")
