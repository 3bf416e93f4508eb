"""A seed gives the same text alone, in any batch position, after preemption and after a resume elsewhere."""

import pytest
import torch

from rhizome_engine.core.engine_core import EngineCore
from rhizome_engine.core.events import FinishedEvent, StartedEvent, TokensEvent
from rhizome_engine.runner import ModelRunner
from rhizome_engine.sampling.params import SamplingParams
from rhizome_engine.scheduler.config import SchedulerConfig
from rhizome_engine.scheduler.request import Request
from rhizome_testing.checkpoints import LlamaShape, write_llama_checkpoint

PROMPT = list(range(40, 75))
TOKENS = 40
SETTINGS = {
    "plain": SamplingParams(temperature=1.0, seed=11),
    "filters": SamplingParams(temperature=0.9, top_k=50, top_p=0.95, min_p=0.01, seed=11),
    "penalties": SamplingParams(
        temperature=0.8, repetition_penalty=1.2, frequency_penalty=0.4, presence_penalty=0.3, seed=11
    ),
    "lists": SamplingParams(
        temperature=1.0,
        logit_bias={7: 3.0, 9: -4.0},
        allowed_token_ids=tuple(range(200)),
        bad_words=((7, 9), (12,), (3, 4, 5)),
        seed=11,
    ),
}
every_setting = pytest.mark.parametrize("params", SETTINGS.values(), ids=SETTINGS)


@pytest.fixture(scope="module")
def runner(tmp_path_factory):
    torch.set_num_threads(1)
    path = write_llama_checkpoint(tmp_path_factory.mktemp("model"), LlamaShape(), seed=4)
    return ModelRunner(path, device="cpu", dtype="float32", num_pages=256, max_num_rows=16)


class FewPages:
    """The runner with a small pool."""

    page_size = 16

    def __init__(self, runner, num_pages):
        self.config, self.launch, self.num_pages = runner.config, runner.launch, num_pages


@pytest.fixture(params=[False, True], ids=["in_turn", "overlap"])
def new_core(runner, request):
    return lambda num_pages=256: EngineCore(
        FewPages(runner, num_pages), SchedulerConfig(max_batch_size=16, overlap=request.param)
    )


def run(core):
    tokens, ends = {}, {}
    while core.has_work:
        for event in core.step():
            name = event.request.request_id
            if isinstance(event, TokensEvent):
                tokens.setdefault(name, []).extend(event.token_ids)
            if isinstance(event, FinishedEvent):
                ends[name] = event
        core.check_conservation()
    return tokens, ends


def add(core, name, params, prompt=PROMPT, **settings):
    core.add(Request(name, prompt, params, max_tokens=TOKENS, ignore_eos=True, **settings))


@pytest.fixture
def alone(new_core):
    def tokens_of(params):
        core = new_core()
        add(core, "alone", params)
        return run(core)[0]["alone"]

    return tokens_of


@every_setting
def test_in_every_position_of_a_batch(new_core, alone, params):
    expected = alone(params)
    assert len(set(expected)) > 4, "the model repeats itself; the test would prove little"
    core = new_core()
    others = list(SETTINGS.values())
    for number in range(7):
        add(core, f"other-{number}", others[number % len(others)], prompt=[number, *PROMPT[number:]])
        add(core, f"same-{number}", params)
    tokens, _ = run(core)
    assert all(tokens[f"same-{number}"] == expected for number in range(7))


@every_setting
def test_after_preemption(new_core, alone, params):
    core = new_core(num_pages=11)
    for number in range(3):
        add(core, f"same-{number}", params, namespace=str(number))
    tokens, ends = run(core)
    assert sum(end.usage.preemptions for end in ends.values()) > 0
    assert all(tokens[f"same-{number}"] == alone(params) for number in range(3))


@every_setting
@pytest.mark.parametrize("cut", [1, 17, TOKENS - 1])
def test_after_a_resume_on_another_engine(new_core, alone, params, cut):
    expected = alone(params)
    core = new_core()
    add(core, "resumed", params, prompt=[*PROMPT, *expected[:cut]], resumed_tokens=cut)
    tokens, ends = run(core)
    assert expected[:cut] + tokens["resumed"] == expected
    usage = ends["resumed"].usage
    assert (usage.prompt_tokens, usage.completion_tokens) == (len(PROMPT), TOKENS)


def test_a_seed_that_the_engine_drew_reproduces_its_text(new_core):
    core = new_core()
    add(core, "drawn", SamplingParams(temperature=1.0))
    started = [event for event in core.step() if isinstance(event, StartedEvent)]
    tokens, _ = run(core)
    again = new_core()
    add(again, "again", SamplingParams(temperature=1.0, seed=started[0].request.seed))
    repeated = run(again)[0]["again"]
    assert repeated[-len(tokens["drawn"]) :] == tokens["drawn"]
