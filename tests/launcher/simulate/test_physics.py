from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from rhizome_launcher.simulate.engine import Engine, TooLargeError
from rhizome_launcher.simulate.physics import Physics
from rhizome_launcher.simulate.request import TOKEN_BYTES, SimulatedRequest, words


@dataclass
class Diary:
    """A sink that notes when its tokens come."""

    engine: Engine
    times: list[float] = field(default_factory=list)
    words: list[int] = field(default_factory=list)
    ended: bool = False

    def started(self, request: SimulatedRequest) -> None:
        pass

    def token(self, index: int) -> None:
        self.words.append(index)
        self.times.append(self.engine._now)

    def finished(self, request: SimulatedRequest) -> None:
        self.ended = True

    def flush(self) -> None:
        pass


@dataclass(frozen=True)
class Arrival:
    at_s: float
    prompt_tokens: int
    max_tokens: int


def prompt(tokens: int, salt: int) -> bytearray:
    """A prompt that shares no block with another salt's."""
    return bytearray(
        b"".join((salt * 100_000 + index).to_bytes(TOKEN_BYTES, "little") for index in range(tokens))
    )


def simulated(physics: Physics, arrivals: Sequence[Arrival]) -> tuple[Engine, list[Diary]]:
    engine = Engine(physics, words())
    diaries = []
    for salt, arrival in enumerate(arrivals):
        if salt and arrival.at_s > arrivals[salt - 1].at_s:
            engine.advance(arrival.at_s)
        diary = Diary(engine)
        diaries.append(diary)
        engine.submit(
            SimulatedRequest(diary, prompt(arrival.prompt_tokens, salt), arrival.max_tokens), arrival.at_s
        )
    engine.advance(1e12)
    return engine, diaries


def reference(physics: Physics, arrivals: Sequence[Arrival]) -> list[list[float]]:
    """Token times by the plainest account: at each step look at every request there is."""
    times: list[list[float]] = [[] for _ in arrivals]
    left = [arrival.prompt_tokens for arrival in arrivals]
    admitted: list[int] = []
    now, idle = 0.0, True
    while True:
        unfinished = [
            index for index, arrival in enumerate(arrivals) if len(times[index]) < arrival.max_tokens
        ]
        if not unfinished:
            return times
        admitted = [index for index in admitted if index in unfinished]
        if idle and not admitted:
            now = max(now, min(arrivals[index].at_s for index in unfinished))
        for index in unfinished:
            there = arrivals[index].at_s < now or (idle and arrivals[index].at_s <= now)
            if there and index not in admitted and len(admitted) < physics.max_running:
                admitted.append(index)
        decodes = [index for index in admitted if left[index] == 0]
        room = physics.step_tokens - len(decodes)
        chunks = {}
        for index in admitted:
            chunks[index] = min(left[index], room)
            room -= chunks[index]
        computed = sum(chunks.values())
        idle = not (computed or decodes)
        if idle:
            now = min(arrivals[index].at_s for index in unfinished if index not in admitted)
            continue
        now += computed / physics.prefill_tokens_per_s
        if decodes:
            now += (physics.itl_base_ms + physics.itl_per_request_ms * len(decodes)) / 1e3
        for index in admitted:
            left[index] -= chunks[index]
            if index in decodes or (chunks[index] and left[index] == 0):
                times[index].append(now)


def test_one_request_takes_its_prefill_and_a_step_per_token() -> None:
    physics = Physics(
        prefill_tokens_per_s=1000, itl_base_ms=10, itl_per_request_ms=1, step_tokens=512, max_running=8
    )
    _, (diary,) = simulated(physics, [Arrival(5.0, 700, 4)])
    assert diary.times == pytest.approx([5.7, 5.711, 5.722, 5.733])
    assert diary.ended


def test_a_prompt_beside_a_stream_slows_its_tokens_by_the_chunk() -> None:
    physics = Physics(
        prefill_tokens_per_s=1000, itl_base_ms=10, itl_per_request_ms=0, step_tokens=101, max_running=8
    )
    _, (stream, late) = simulated(physics, [Arrival(0.0, 100, 5), Arrival(0.105, 150, 1)])
    # The step from 0.1 to 0.11 does not know of the second prompt; then 100 of its tokens go along, then 50.
    assert stream.times == pytest.approx([0.1, 0.11, 0.22, 0.28, 0.29])
    assert late.times == pytest.approx([0.28])


ARRIVALS = st.lists(
    st.builds(
        Arrival,
        at_s=st.floats(0, 3, allow_nan=False),
        prompt_tokens=st.integers(1, 3000),
        max_tokens=st.integers(1, 40),
    ),
    min_size=1,
    max_size=12,
).map(lambda arrivals: sorted(arrivals, key=lambda arrival: arrival.at_s))


@settings(max_examples=60, deadline=None)
@given(ARRIVALS, st.integers(1, 6), st.integers(64, 2048))
def test_token_times_are_those_of_the_plain_account(
    arrivals: list[Arrival], max_running: int, step_tokens: int
) -> None:
    physics = Physics(max_running=max_running, step_tokens=step_tokens)
    _, diaries = simulated(physics, arrivals)
    expected = reference(physics, arrivals)
    for diary, times in zip(diaries, expected, strict=True):
        assert diary.times == pytest.approx(times)


@settings(max_examples=40, deadline=None)
@given(ARRIVALS, st.integers(0, 60))
def test_a_pool_that_is_too_small_delays_and_changes_nothing_else(
    arrivals: list[Arrival], spare: int
) -> None:
    needed = max(-(-(one.prompt_tokens + one.max_tokens) // 16) for one in arrivals)
    _, roomy = simulated(Physics(), arrivals)
    engine, tight = simulated(Physics(kv_blocks=needed + spare), arrivals)
    assert [diary.words for diary in tight] == [diary.words for diary in roomy]
    assert all(diary.ended for diary in tight)
    assert engine.pool.in_use == 0
    assert engine.running == engine.waiting == 0


def test_the_last_request_makes_way_when_blocks_run_out() -> None:
    physics = Physics(kv_blocks=8, block_size=4, step_tokens=64, max_running=4, prefix_cache=False)
    engine, diaries = simulated(physics, [Arrival(0, 12, 12), Arrival(0, 12, 12)])
    assert engine.totals.preemptions > 0
    assert max(diaries[0].times) < max(diaries[1].times)
    assert [len(diary.times) for diary in diaries] == [12, 12]


def test_a_light_tenant_shares_each_step_and_leaves_the_queue_first() -> None:
    physics = Physics(prefill_tokens_per_s=1000, step_tokens=1000, max_running=2, itl_base_ms=1e-6)
    engine = Engine(physics, words())
    heavy = [Diary(engine) for _ in range(3)]
    for salt, diary in enumerate(heavy):
        engine.submit(SimulatedRequest(diary, prompt(4000, salt), 1, tenant="heavy"), 0.0)
    light = Diary(engine)
    engine.submit(SimulatedRequest(light, prompt(500, 9), 1, tenant="light"), 0.0)
    engine.advance(100.0)
    # Two of the heavy tenant's are under way before anybody else came; the light one is next, and then needs
    # only half of a step.
    firsts = [diary.times[0] for diary in heavy]
    assert firsts[0] == pytest.approx(4.0, abs=0.1) and light.times == pytest.approx([5.0], abs=0.1)
    assert max(firsts) == pytest.approx(12.5, abs=0.2)


def test_a_tenant_does_not_pay_for_what_it_had_while_it_was_alone() -> None:
    physics = Physics(prefill_tokens_per_s=1000, step_tokens=1000, max_running=1, itl_base_ms=1e-6)
    engine = Engine(physics, words())
    early, heavy, light = Diary(engine), [Diary(engine) for _ in range(3)], Diary(engine)
    engine.submit(SimulatedRequest(early, prompt(8000, 1), 1, tenant="light"), 0.0)
    engine.advance(10.0)
    for salt, diary in enumerate(heavy):
        engine.submit(SimulatedRequest(diary, prompt(1000, 10 + salt), 1, tenant="heavy"), 10.0)
    engine.submit(SimulatedRequest(light, prompt(1000, 20), 1, tenant="light"), 10.0)
    engine.advance(100.0)
    assert [diary.times[0] for diary in heavy] == pytest.approx([11.0, 13.0, 14.0], abs=0.1)
    assert light.times == pytest.approx([12.0], abs=0.1)


def test_what_never_fits_is_refused() -> None:
    engine = Engine(Physics(kv_blocks=4, block_size=4, step_tokens=64, max_running=4), words())
    with pytest.raises(TooLargeError, match="shorter prompt"):
        engine.submit(SimulatedRequest(Diary(engine), prompt(12, 0), 5), 0.0)


def test_a_cached_prefix_is_not_computed_again() -> None:
    physics = Physics(prefill_tokens_per_s=1000, block_size=16, step_tokens=4096, max_running=4)
    engine = Engine(physics, words())
    first, second = Diary(engine), Diary(engine)
    engine.submit(SimulatedRequest(first, prompt(160, 7), 1), 0.0)
    engine.advance(10.0)
    longer = SimulatedRequest(second, prompt(160, 7) + prompt(40, 8), 1)
    engine.submit(longer, 10.0)
    engine.advance(20.0)
    assert longer.cached == 160
    assert second.times == pytest.approx([10.04])
    assert engine.hit_rate == pytest.approx(160 / 360)


def test_the_same_prompt_again_computes_its_last_token() -> None:
    engine = Engine(Physics(prefill_tokens_per_s=1000), words())
    for moment in (0.0, 10.0):
        request = SimulatedRequest(Diary(engine), prompt(32, 7), 1)
        engine.submit(request, moment)
        engine.advance(moment + 9)
    assert request.cached == 31


def test_an_answer_is_cached_for_the_next_turn() -> None:
    engine = Engine(Physics(), words())
    first = SimulatedRequest(Diary(engine), prompt(16, 7), 33)
    engine.submit(first, 0.0)
    engine.advance(10.0)
    turn = SimulatedRequest(Diary(engine), bytearray(first.content) + prompt(8, 9), 1)
    engine.submit(turn, 10.0)
    engine.advance(20.0)
    assert turn.cached == 48


def test_namespaces_share_nothing() -> None:
    engine = Engine(Physics(), words())
    for moment, namespace in ((0.0, "a"), (10.0, "b")):
        request = SimulatedRequest(Diary(engine), prompt(64, 7), 1, namespace=namespace)
        engine.submit(request, moment)
        engine.advance(moment + 9)
    assert request.cached == 0


def test_a_cancelled_request_gives_its_blocks_back() -> None:
    engine = Engine(Physics(max_running=1, step_tokens=64), words())
    diaries = [Diary(engine), Diary(engine)]
    requests = [SimulatedRequest(diary, prompt(100, salt), 50) for salt, diary in enumerate(diaries)]
    for request in requests:
        engine.submit(request, 0.0)
    engine.advance(0.01)
    assert (engine.running, engine.waiting) == (1, 1)
    for request in requests:
        engine.cancel(request)
    engine.advance(10.0)
    assert (engine.running, engine.waiting, engine.pool.in_use, engine.due) == (0, 0, 0, None)
    assert engine.totals.aborted == 2
    assert not any(diary.times for diary in diaries)


def test_noise_is_the_same_for_the_same_seed() -> None:
    arrivals = [Arrival(0, 100, 20)]
    times = [simulated(Physics(noise=0.2, noise_seed=seed), arrivals)[1][0].times for seed in (1, 1, 2)]
    assert times[0] == times[1] != times[2]


@settings(max_examples=50, deadline=None)
@given(st.binary(min_size=0, max_size=50), st.integers(0, 39), st.integers(0, 2**40))
def test_a_stream_cut_anywhere_goes_on_elsewhere(text: bytes, cut: int, seed: int) -> None:
    def run(content: bytes, tokens: int) -> list[int]:
        engine = Engine(Physics(), words())
        diary = Diary(engine)
        engine.submit(SimulatedRequest(diary, bytearray(content), tokens, seed), 0.0)
        engine.advance(100.0)
        return diary.words

    whole = run(text, 40)
    emitted = b"".join(words()[index] for index in whole[:cut])
    assert run(text + emitted, 40 - cut) == whole[cut:]


def test_words_are_one_token_each_and_all_different() -> None:
    vocabulary = words()
    assert len(set(vocabulary)) == len(vocabulary) == 1280
    assert {len(word) for word in vocabulary} == {TOKEN_BYTES}
