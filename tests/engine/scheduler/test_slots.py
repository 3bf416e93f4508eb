import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from rhizome_engine.scheduler.slots import SlotTable


def test_a_slot_has_one_occupant_at_a_time_and_each_its_own_number():
    table = SlotTable(3, 4, 4)
    taken = [table.take() for _ in range(3)]
    assert sorted(taken) == [0, 1, 2] and table.num_free == 0
    with pytest.raises(IndexError):
        table.take()
    before = int(table.occupant[1])
    table.give_back(1)
    assert table.num_free == 1 and table.occupant[1] != before
    freed = int(table.occupant[1])
    assert table.take() == 1 and table.occupant[1] not in (before, freed)


@given(steps=st.lists(st.tuples(st.booleans(), st.integers(0, 3)), max_size=60))
def test_the_number_of_an_occupant_never_comes_again(steps):
    table, held, seen = SlotTable(4, 1, 4), [], set()
    for takes, index in steps:
        if takes and table.num_free:
            slot = table.take()
            assert slot not in held and (slot, int(table.occupant[slot])) not in seen
            held.append(slot)
        elif held:
            table.give_back(held.pop(index % len(held)))
        seen |= {(slot, int(table.occupant[slot])) for slot in range(4)}
        assert table.num_free + len(held) == 4


def test_a_new_occupant_is_fully_confirmed_and_a_read_token_is_the_last(make_request):
    table = SlotTable(2, 4, 4)
    slot = table.take()
    request = make_request(range(36, 43), max_output=13)
    request.num_computed = 3
    table.take_turns(np.array([slot]))
    table.fill(slot, request, num_pages=2)
    assert table.known[slot] == table.confirmed[slot] == table.prompt_end[slot] == 7
    assert (table.computed[slot], table.limit[slot], table.capacity[slot]) == (3, 20, 8)
    assert table.samples[slot]
    table.known[slot] += 1  # scheduled to be chosen, and not read
    assert table.confirmed[slot] == 7 and table.last_token[slot] == 42
    table.confirm(np.array([slot]), np.array([7]), np.array([99]))
    assert table.confirmed[slot] == table.known[slot] == 8 and table.last_token[slot] == 99
    table.extend(slot, 12, 5)
    assert table.confirmed[slot] == table.known[slot] == 12 and table.last_token[slot] == 5


def test_a_prompt_without_output_is_computed_to_its_end(make_request):
    table = SlotTable(2, 4, 4)
    slot = table.take()
    table.fill(slot, make_request(range(7), max_output=0), num_pages=2)
    assert not table.samples[slot] and table.known[slot] < table.limit[slot]


@given(steps=st.lists(st.integers(1, 4), max_size=30), count=st.integers(4, 7))
def test_whoever_was_out_longest_is_next_and_nobody_is_out_for_long(steps, count):
    table = SlotTable(count, 1, 4)
    slots = np.arange(count)
    out = dict.fromkeys(range(count), 0)
    for rows in steps:
        chosen = slots[np.argsort(table.last_turn, kind="stable")[:rows]]
        longest = sorted(out.values(), reverse=True)[rows - 1]
        assert min(out[slot] for slot in chosen.tolist()) >= longest
        table.take_turns(np.sort(chosen))
        out = {slot: 0 if slot in chosen else waited + 1 for slot, waited in out.items()}
        assert max(out.values()) <= count
