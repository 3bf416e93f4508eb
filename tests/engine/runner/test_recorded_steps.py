"""Steps that are replayed give what the same steps give when they are computed one by one.

`graphs="rerun"` goes every way of a recorded step, with static arrays, padding, the device's page table and
tokens that are chosen within; only the graph itself is missing.
"""

from __future__ import annotations

import numpy as np
import pytest
import torch

from rhizome_engine.batch import TokenMasks
from rhizome_engine.core.durations import to_seconds
from rhizome_engine.core.reports import to_load
from rhizome_engine.runner import graphs
from rhizome_engine.runner.recording import RecordingError, RerunRecorder
from rhizome_engine.runner.static_step import End
from rhizome_engine.runner.step_buffers import StepBuffers
from rhizome_engine.sampling.params import SamplingParams

GREEDY = SamplingParams(temperature=0.0)
SYSTEM = [7 * number % 250 for number in range(30)]
WAYS = [
    GREEDY,
    SamplingParams(temperature=0.9, seed=1),
    SamplingParams(temperature=1.3, top_p=0.8, min_p=0.01, seed=2),
    SamplingParams(temperature=0.7, top_k=20, seed=3),
]
PENALISED = [
    SamplingParams(temperature=0.0, repetition_penalty=1.3),
    SamplingParams(temperature=0.8, frequency_penalty=0.5, presence_penalty=0.4, seed=4),
]
APART = [
    SamplingParams(temperature=0.0, top_logprobs=2),
    SamplingParams(temperature=0.9, seed=5, logit_bias={3: 5.0}, bad_words=((1, 2), (9,))),
    SamplingParams(temperature=0.9, seed=6, allowed_token_ids=tuple(range(100))),
]


def prompt(number):
    """Some share a beginning, so that it is found in the cache."""
    own = [(number * 31 + 5 * place) % 250 for place in range(3 + 5 * number % 23)]
    return [*SYSTEM[: 10 * (number % 4)], *own]


def kinds(played):
    return set(played.runner._computer._recorded._recordings)


def ends(played):
    return {(kind.shape.is_decode, kind.end) for kind in kinds(played)}


def same(replayed, eager):
    assert replayed.tokens == eager.tokens
    for name, logprobs in eager.logprobs.items():
        for ours, theirs in zip(replayed.logprobs[name], logprobs, strict=True):
            assert ours.logprob == pytest.approx(theirs.logprob, abs=1e-4)
            assert [token for token, _ in ours.top] == [token for token, _ in theirs.top]
    ours, theirs = replayed.runner.kv.data, eager.runner.kv.data
    assert torch.allclose(ours, theirs, atol=1e-4), "padding was written, or a token's keys are elsewhere"


@pytest.mark.parametrize("overlap", [False, True], ids=["in_turn", "overlap"])
def test_rows_join_leave_are_preempted_and_grow(make_played, overlap):
    def play(recording):
        played = make_played(
            recording,
            num_pages=30,
            max_batch_size=5,
            max_step_tokens=64,
            max_partial_prefills=5,
            overlap=overlap,
        )
        for number in range(14):
            played.add(
                f"{number}", prompt(number), (WAYS + PENALISED)[number % 6], max_tokens=4 + 3 * (number % 6)
            )
            for _ in range(number % 3):
                played.step()
        played.core.cancel("3")
        return played.finish()

    eager, replayed = play("off"), play("rerun")
    same(replayed, eager)
    totals, counts = replayed.core.load().totals, replayed.runner.counts
    assert totals.preemptions and totals.cache_hit_tokens
    assert (True, End.PENALISED) in ends(replayed)
    assert {kind.shape.num_rows for kind in kinds(replayed) if kind.shape.is_decode} >= {1, 2, 4}
    assert counts.replayed > counts.eager > 0 == eager.runner.counts.replayed
    assert counts.recordings == len(kinds(replayed)) and counts.recording_s > 0
    assert counts.replayed + counts.eager == totals.steps
    told = to_load(replayed.core.load(), "", 0).totals
    assert (told.steps, told.replayed_steps) == (totals.steps, counts.replayed)
    assert (told.recordings, to_seconds(told.recording_time)) == (
        counts.recordings,
        pytest.approx(counts.recording_s, abs=1e-6),
    )


@pytest.mark.parametrize("page_size", [1, 16])
def test_small_prefills_and_every_bucket_of_rows(make_played, page_size):
    def play(recording):
        played = make_played(
            recording, num_pages=4096 // page_size, page_size=page_size, max_batch_size=9, max_step_tokens=80,
            max_partial_prefills=9,
        )  # fmt: skip
        for turn in range(4):
            for number in range(9):
                played.add(f"{turn} {number}", prompt(number + turn), WAYS[number % 4], max_tokens=2 + number)
            played.finish()
        for number, count in enumerate((10, 70, 64, 50, 80, 65, 2, 130, 131)):
            played.add(
                f"alone {number}", [100 + number] * count, (WAYS + PENALISED)[number % 6], max_tokens=2
            )
            if number in (0, 3, 6):
                played.add(f"pair {number}", [200 + number] * 8, WAYS[1], max_tokens=2)
            played.finish()
        return played

    eager, replayed = play("off"), play("rerun")
    same(replayed, eager)
    assert {kind.shape.num_rows for kind in kinds(replayed) if kind.shape.is_decode} >= {1, 2, 4, 8}
    assert {kind.shape.num_tokens for kind in kinds(replayed) if not kind.shape.is_decode} == {64, 80}
    assert {(True, End.TOKENS), (False, End.TOKENS), (False, End.HIDDEN)} <= ends(replayed)


def test_a_prompt_beside_many_rows_that_decode(make_played):
    def play(recording):
        played = make_played(
            recording, num_pages=600, max_batch_size=20, max_step_tokens=64, max_partial_prefills=20
        )
        for number in range(19):
            played.add(f"{number}", prompt(number), WAYS[number % 4], max_tokens=60)
        for _ in range(6):
            played.step()
        for number in range(4):
            played.add(f"late {number}", [50 + number] * 90, WAYS[number], max_tokens=3)
            for _ in range(5):
                played.step()
        return played.finish()

    eager, replayed = play("off"), play("rerun")
    same(replayed, eager)
    shapes = {kind.shape for kind in kinds(replayed) if not kind.shape.is_decode}
    assert (64, 20) in {(shape.num_tokens, shape.num_rows) for shape in shapes}


def test_rows_that_are_sampled_apart_end_at_hidden_states(make_played):
    def play(recording):
        played = make_played(recording, max_batch_size=4, max_step_tokens=64, overlap=True)
        for number, params in enumerate([*APART, GREEDY]):
            played.add(str(number), prompt(number), params, min_tokens=3 if number == 3 else 0)
        played.finish()
        played.add("scores", prompt(5), GREEDY, prompt_logprobs=1)
        return played.finish()

    eager, replayed = play("off"), play("rerun")
    same(replayed, eager)
    assert (True, End.HIDDEN) in ends(replayed)
    assert replayed.runner.counts.replayed > 5


def test_rows_with_log_probabilities_alone_get_them(make_played):
    def play(recording):
        played = make_played(recording, max_batch_size=2, max_step_tokens=64)
        for number in range(2):
            played.add(str(number), prompt(number), APART[0])
        return played.finish()

    eager, replayed = play("off"), play("rerun")
    same(replayed, eager)
    assert len(replayed.logprobs["0"]) == 12 and ends(replayed) == {(True, End.HIDDEN)}


def test_masks_come_when_tokens_are_chosen_and_not_before(make_played, monkeypatch):
    def play(recording):
        played = make_played(recording, max_batch_size=2, max_step_tokens=64)
        constraints = played.core._constraints
        allowed = np.zeros((1, 10), np.uint32)
        allowed[0, 2] = 0xFF  # tokens 64 to 71
        monkeypatch.setattr(
            constraints, "masks", lambda plan: TokenMasks(np.zeros(1, np.int64), allowed.view(np.int32))
        )
        played.add("a", prompt(2), SamplingParams(temperature=2.0, seed=8), max_tokens=20)
        played.step()
        played.core._slots.constrained[:] = True
        return played.finish()

    eager, replayed = play("off"), play("rerun")
    same(replayed, eager)
    assert {64 <= token < 72 for token in replayed.tokens["a"]} == {True}
    assert (True, End.HIDDEN) in ends(replayed) and (True, End.TOKENS) not in ends(replayed)


def test_masks_that_nobody_announced_are_an_error(make_played, monkeypatch, caplog):
    played = make_played("rerun", max_batch_size=2, max_step_tokens=64)
    played.add("a", prompt(2), GREEDY, max_tokens=20)
    for _ in range(6):
        played.step()
    masks = TokenMasks(np.zeros(1, np.int64), np.full((1, 10), -1, np.int32))
    monkeypatch.setattr(played.core._constraints, "masks", lambda _: masks)
    with pytest.raises(Exception, match="the engine failed"):
        played.step()
    assert "masks for a step whose batch said that no row is constrained" in caplog.text


def test_a_prefix_of_many_pages_is_sent_apart(make_played, monkeypatch):
    monkeypatch.setattr(graphs, "_MORE_CHANGES", 1)

    def play(recording):
        played = make_played(recording, num_pages=400, page_size=1, max_batch_size=2, max_step_tokens=200)
        for number in range(3):
            played.add(f"{number}", [*range(90), number], GREEDY, max_tokens=8)
            played.finish()
        return played

    eager, replayed = play("off"), play("rerun")
    same(replayed, eager)
    assert replayed.core.load().totals.cache_hit_tokens >= 180


def test_kinds_are_recorded_when_nothing_else_is_to_do(make_played, monkeypatch):
    monkeypatch.setattr(graphs, "_PATIENCE", 1000)
    played = make_played("rerun", max_batch_size=4, max_step_tokens=64)
    assert not played.core.use_idle_time()
    for number in range(4):
        played.add(str(number), prompt(number), GREEDY, max_tokens=3 + number)
    played.step()
    assert not played.core.use_idle_time() and not kinds(played), "there is work"
    played.finish()
    assert played.runner.counts.replayed == 0
    while played.core.use_idle_time():
        pass
    recorded = [kind.shape.num_tokens for kind in played.runner._computer._recorded._recordings]
    assert recorded == sorted(recorded, reverse=True) and {4, 2, 1} <= set(recorded)
    eager = played.runner.counts.eager
    for number in range(4):
        played.add(f"again {number}", prompt(number), GREEDY, max_tokens=3 + number)
    played.finish()
    assert played.runner.counts.replayed > 0 and played.runner.counts.eager <= eager + 2
    for number in range(4):
        assert played.tokens[f"again {number}"] == played.tokens[str(number)]


def test_what_cannot_be_recorded_is_computed_and_not_tried_again(make_played, monkeypatch, caplog):
    tried = []

    def fail(self, compute):
        tried.append(compute)
        compute()
        raise RecordingError("operation not permitted when stream is capturing")

    monkeypatch.setattr(RerunRecorder, "record", fail)
    replayed, eager = make_played("rerun", max_batch_size=4), make_played("off", max_batch_size=4)
    for played in (eager, replayed):
        for number in range(8):
            played.add(str(number), prompt(number), WAYS[number % 4])
        played.finish()
    same(replayed, eager)
    assert len(tried) == caplog.text.count("could not be recorded") in (1, 2)  # decode; perhaps prefill
    assert replayed.runner.counts.replayed == replayed.runner.counts.recordings == 0
    assert not replayed.core.use_idle_time()


def test_what_a_failed_step_did_not_send_is_sent_again(make_played, monkeypatch):
    played = make_played("rerun", max_batch_size=2, page_size=1)
    played.add("a", prompt(3), GREEDY, max_tokens=40)
    for _ in range(8):
        played.step()
    assert played.runner.counts.replayed
    send, failures = StepBuffers.send, [1]

    def fail_once(self, *arguments):
        if failures:
            failures.pop()
            raise RuntimeError("asked for")
        return send(self, *arguments)

    monkeypatch.setattr(StepBuffers, "send", fail_once)
    with pytest.raises(Exception, match="the engine failed"):
        played.step()
    eager = make_played("off", max_batch_size=2, page_size=1)
    for each in (played, eager):
        each.tokens.clear()
        each.add("b", prompt(3), GREEDY, max_tokens=3)  # does not come as far as "a" did
        each.finish()
    assert played.tokens == eager.tokens
    pages = played.runner._computer._recorded._pages
    known = pages._shadow >= 0
    assert known.any() and (pages.table.numpy()[known] == pages._shadow[known]).all()


@pytest.mark.parametrize(("graphs_", "why"), [("off", "off"), ("auto", "none: for CUDA devices only")])
def test_a_cpu_records_nothing(make_played, graphs_, why):
    played = make_played(graphs_)
    assert played.runner._computer.graphs == why and played.runner._computer._recorded is None
    with pytest.raises(ValueError, match="graphs must be auto, off, rerun, not 'always'"):
        make_played("always")


def test_attention_that_cannot_be_recorded_says_so(small_checkpoint):
    from rhizome_engine.runner import ModelRunner

    runner = ModelRunner(
        small_checkpoint, device="cpu", kernels="torch", attention="sdpa", graphs="rerun", num_pages=8
    )
    assert runner._computer.graphs == "none: sdpa attention cannot be recorded"
