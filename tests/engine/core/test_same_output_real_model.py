"""The same greedy tokens from the real model whatever happens around a request."""

import random

import pytest
import torch

from rhizome_engine.core.engine_core import EngineCore
from rhizome_engine.core.events import TokensEvent
from rhizome_engine.runner import ModelRunner
from rhizome_engine.sampling.params import SamplingParams
from rhizome_engine.scheduler.config import SchedulerConfig
from rhizome_engine.scheduler.request import Request
from rhizome_testing.checkpoints import LlamaShape, write_llama_checkpoint

GREEDY = SamplingParams(temperature=0.0)
SEEDED = SamplingParams(temperature=1.0, top_p=0.95, seed=7)
SYSTEM = list(b"You answer in one short sentence. ")
PROMPT = [*SYSTEM, *b"What is a rhizome?"]
TOKENS = 32
POOL_TOKENS = 4096

chunk_sizes = pytest.mark.parametrize("chunk", [1, 7, 512])


@pytest.fixture(scope="module", params=[1, 16], ids=["page1", "page16"])
def runner(request, tmp_path_factory):
    torch.set_num_threads(1)
    shape = LlamaShape(tie_word_embeddings=False)
    path = write_llama_checkpoint(tmp_path_factory.mktemp("model"), shape, seed=4)
    return ModelRunner(
        path, device="cpu", dtype="float32", page_size=request.param, num_pages=POOL_TOKENS // request.param
    )


class Session:
    """One engine core over the shared runner; what earlier ones left in the KV pool must not matter."""

    def __init__(self, runner, **config):
        self.core = EngineCore(runner, SchedulerConfig(**config))
        self.tokens = {}

    def add(self, name, prompt=PROMPT, max_tokens=TOKENS, params=GREEDY):
        self.tokens[name] = []
        self.core.add(Request(name, prompt, params, max_tokens=max_tokens))

    def step(self):
        for event in self.core.step():
            if isinstance(event, TokensEvent):
                self.tokens[event.request.request_id] += event.token_ids
        self.core.check_conservation()

    def finish(self):
        while self.core.has_work:
            self.step()
        return self.tokens


class SmallPool:
    """The runner, with all but a few pages withheld."""

    def __init__(self, runner, tokens):
        self.page_size, self.config = runner.page_size, runner.config
        self.num_pages = tokens // runner.page_size
        self.launch, self.counts = runner.launch, runner.counts


@pytest.fixture(scope="module")
def expected(runner):
    session = Session(runner)
    session.add("greedy")
    session.finish()
    session.core.flush_cache()
    session.add("seeded", params=SEEDED)
    tokens = session.finish()
    assert len(set(tokens["greedy"])) > 4, "the model repeats itself; the test would prove little"
    return tokens


def neighbour(number):
    generator = random.Random(number)
    shared = SYSTEM[: generator.randrange(len(SYSTEM))]
    return [*shared, *(generator.randrange(256) for _ in range(generator.randrange(1, 50)))]


@chunk_sizes
def test_alone_and_with_the_prefix_cached(runner, expected, chunk):
    session = Session(runner, max_chunk_tokens=chunk)
    session.add("cold")
    session.finish()
    session.add("warm")
    session.add("seeded", params=SEEDED)
    tokens = session.finish()
    assert tokens["cold"] == tokens["warm"] == expected["greedy"]
    assert tokens["seeded"] == expected["seeded"]
    assert session.core.load().totals.cache_hit_tokens == 2 * (len(PROMPT) - 1)


@chunk_sizes
def test_in_a_batch_of_16_with_others_joining_leaving_and_cancelled(runner, expected, chunk):
    session = Session(runner, max_chunk_tokens=chunk, max_batch_size=16, max_step_tokens=128)
    for number in range(10):
        session.add(str(number), neighbour(number), max_tokens=2 + 4 * number)
    session.step()
    session.add("a")
    session.add("b", params=SEEDED)
    for number in range(10, 24):
        session.step()
        session.add(str(number), neighbour(number), max_tokens=1 + number % 13)
        if number % 3 == 0:
            session.core.cancel(str(number - 8))
    tokens = session.finish()
    assert tokens["a"] == expected["greedy"] and tokens["b"] == expected["seeded"]


def test_under_preemption_in_a_tiny_pool(runner, expected):
    session = Session(SmallPool(runner, 160))
    session.add("a")
    for number in range(6):
        session.add(str(number), neighbour(number)[:9], max_tokens=2 * TOKENS)
    session.add("b", params=SEEDED)
    tokens = session.finish()
    assert session.core.load().totals.preemptions > 0
    assert tokens["a"] == expected["greedy"] and tokens["b"] == expected["seeded"]
