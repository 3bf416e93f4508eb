"""Flat arrays of a step, against a builder that goes through rows and tokens one by one."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from rhizome_engine.sampling.params import SamplingParams
from rhizome_engine.sampling.rows import SamplingRows
from rhizome_engine.scheduler.batch_builder import build_batch
from rhizome_engine.scheduler.slots import SlotTable
from rhizome_engine.scheduler.step_plan import Chunk, StepPlan

NUM_SLOTS, MAX_PAGES, VOCAB = 12, 16, 1000

rows = st.lists(
    st.fixed_dictionaries(
        {
            "decodes": st.booleans(),
            "known": st.integers(2, 30),
            "late": st.booleans(),
            "start": st.integers(0, 29),
            "length": st.integers(1, 30),
            "scores": st.sampled_from([None, 0, 3]),
        }
    ),
    min_size=1,
    max_size=NUM_SLOTS,
)


class Step:
    """A plan and the tables that it was made from."""

    def __init__(self, make_request, rows, page_size):
        self.page_size = page_size
        self.slots = SlotTable(NUM_SLOTS, MAX_PAGES * (16 // page_size), page_size)
        pages = np.random.default_rng(len(rows)).permutation(self.slots.page_table.size)
        self.slots.page_table[:] = pages.reshape(self.slots.page_table.shape)
        self.sampling = SamplingRows(NUM_SLOTS, VOCAB)
        self.expected = []  # (request, first position, tokens, late, samples)
        decode, chunks = [], []
        for row in rows:
            request = make_request(
                [(7 * number + row["known"]) % VOCAB for number in range(row["known"])],
                prompt_logprobs=row["scores"],
            )
            request.slot = self.slots.take()
            (decode if row["decodes"] else chunks).append((request, row))
        for request, row in decode:
            known = request.num_tokens
            self._fill(request)
            position = known - 1
            if row["late"]:
                position = known
                self.slots.known[request.slot] += 1
            self.expected.append((request, position, 1, row["late"], True))
        cut = []
        for request, row in chunks:
            self._fill(request)
            start = min(row["start"], request.num_tokens - 1)
            length = min(row["length"], request.num_tokens - start)
            samples = start + length == request.num_tokens
            occupant = int(self.slots.occupant[request.slot])
            cut.append(Chunk(request, start, length, samples, occupant))
            self.expected.append((request, start, length, False, samples))
        sampled = [(request, start + count) for request, start, count, _, samples in self.expected if samples]
        sampled_slots = np.array([request.slot for request, _ in sampled], np.int64)
        self.plan = StepPlan(
            decode=[request for request, _ in decode],
            decode_slots=np.array([request.slot for request, _ in decode], np.int64),
            decode_positions=np.array([e[1] for e in self.expected[: len(decode)]], np.int64),
            chunks=cut,
            sampled=[request for request, _ in sampled],
            sampled_slots=sampled_slots,
            sampled_positions=np.array([position for _, position in sampled], np.int64),
            occupants=self.slots.occupant[sampled_slots],
        )

    def _fill(self, request):
        self.slots.known[request.slot] = self.slots.confirmed[request.slot] = request.num_tokens
        self.slots.last_token[request.slot] = request.token_ids[-1]
        self.sampling.set(request.slot, request.params, request.seed, request.num_prompt, frozenset(), 0)

    def build(self):
        return build_batch(self.plan, self.slots, self.sampling, self.page_size)


@given(rows=rows, page_size=st.sampled_from([1, 4, 16]))
def test_a_batch_is_what_a_builder_of_single_rows_makes(make_request, rows, page_size):
    step = Step(make_request, rows, page_size)
    batch = step.build()
    token = 0
    late, sampled, scores = [], [], []
    assert batch.num_rows == len(step.expected) and batch.query_start[0] == 0
    for row, (request, start, count, is_late, samples) in enumerate(step.expected):
        pages = step.slots.page_table[request.slot].tolist()
        assert batch.context_len[row] == start + count
        assert batch.slots[row] == request.slot
        used = -(-(start + count) // page_size)
        assert batch.page_table[row, :used].tolist() == pages[:used]
        for position in range(start, start + count):
            assert batch.positions[token] == position
            page, offset = pages[position // page_size], position % page_size
            assert batch.slot_mapping[token] == page * page_size + offset
            if is_late:
                late.append((token, request.slot))
            else:
                assert batch.token_ids[token] == request.token_ids[position]
            token += 1
        assert batch.query_start[row + 1] == token
        if samples:
            sampled.append((row, request.slot, start + count))
        targets = request.token_ids[start + 1 : start + count + 1].tolist()
        if request.prompt_logprobs is not None and targets and row >= len(step.plan.decode):
            scores.append((row, targets, request.prompt_logprobs))
    assert batch.num_tokens == token == len(batch.positions) == len(batch.slot_mapping)
    assert list(zip(batch.late.tolist(), batch.late_slots.tolist(), strict=True)) == late
    of_batch = batch.sampling
    assert list(
        zip(of_batch.rows.tolist(), of_batch.slots.tolist(), of_batch.positions.tolist(), strict=True)
    ) == (sampled)
    assert [(row, targets.tolist(), top) for row, targets, top in batch.prompt_scores] == scores


def test_array_types_are_the_contract(make_request):
    row = {"decodes": False, "known": 9, "late": False, "start": 0, "length": 9, "scores": 0}
    for rows in ([row], [row | {"decodes": True}], [row, row | {"decodes": True, "late": True}]):
        batch = Step(make_request, rows, 4).build()
        wide = (batch.token_ids, batch.positions, batch.slot_mapping, batch.slots)
        wide = (*wide, batch.late, batch.late_slots)
        assert {array.dtype for array in wide} == {np.dtype(np.int64)}
        assert {a.dtype for a in (batch.query_start, batch.context_len, batch.page_table)} == {
            np.dtype(np.int32)
        }
        sampling = batch.sampling
        assert {
            a.dtype for a in (sampling.rows, sampling.slots, sampling.positions, sampling.num_prompt)
        } == {np.dtype(np.int64)}
        assert sampling.seeds.dtype == np.uint64 and sampling.temperature.dtype == np.float32


def test_the_page_table_is_a_copy(make_request):
    row = {"decodes": True, "known": 9, "late": False, "start": 0, "length": 1, "scores": None}
    step = Step(make_request, [row], 4)
    batch = step.build()
    before = batch.page_table.copy()
    step.slots.page_table[:] = -1  # the slot gets other pages while the step is under way
    assert (batch.page_table == before).all()


@pytest.mark.parametrize("decodes", [False, True])
def test_a_batch_says_whether_masks_may_come(make_request, decodes):
    row = {"decodes": decodes, "known": 9, "late": False, "start": 0, "length": 9, "scores": None}
    step = Step(make_request, [row, row], 4)
    assert not step.build().constrained
    step.slots.constrained[step.plan.sampled_slots[1]] = True
    assert step.build().constrained
    step.slots.constrained[:] = True
    step.slots.constrained[step.plan.sampled_slots] = False
    assert not step.build().constrained


def test_histories_are_copies_of_all_known_tokens(make_request):
    request = make_request([5, 6, 7], params=SamplingParams(temperature=1.0))
    row = {"decodes": True, "known": 3, "late": False, "start": 0, "length": 1, "scores": None}
    step = Step(make_request, [row], 4)
    request.slot = 3
    step.plan.new_histories.append(request)
    (history,) = step.build().histories
    request.append(8, 0.0)
    assert history.slot == 3 and history.token_ids.tolist() == [5, 6, 7]


@pytest.mark.parametrize(("start", "length", "resumed", "end"), [(0, 4, 0, 5), (4, 6, 0, 10), (0, 10, 3, 7)])
def test_scores_end_with_the_prompt(make_request, start, length, resumed, end):
    request = make_request(range(10), prompt_logprobs=1, resumed_tokens=resumed)
    chunk = Chunk(request, start, length, samples=False, occupant=1)
    assert (chunk.end, chunk.score_end) == (start + length, end)
    request.prompt_logprobs = None
    assert chunk.score_end == start + 1
