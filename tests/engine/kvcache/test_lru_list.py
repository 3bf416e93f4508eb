from collections import OrderedDict

from hypothesis import given
from hypothesis import strategies as st

from rhizome_engine.kvcache.lru_list import Linked, LruList


@given(st.lists(st.tuples(st.sampled_from(["append", "touch", "remove", "after"]), st.integers(0, 7))))
def test_behaves_as_an_ordered_dictionary(operations):
    elements = [Linked() for _ in range(8)]
    lru: LruList[Linked] = LruList()
    expected: OrderedDict[Linked, None] = OrderedDict()
    for operation, index in operations:
        element = elements[index]
        if operation == "append" and element not in expected:
            lru.append(element)
            expected[element] = None
        elif operation == "touch" and element in expected:
            lru.move_to_newest(element)
            expected.move_to_end(element)
        elif operation == "remove" and element in expected:
            lru.remove(element)
            del expected[element]
        elif operation == "after" and element not in expected and expected:
            order = list(expected)
            older = order[index % len(order)]
            lru.insert_after(element, older)
            order.insert(order.index(older) + 1, element)
            expected = OrderedDict.fromkeys(order)
        assert list(lru) == list(expected)
        assert len(lru) == len(expected)
        assert lru.oldest is next(iter(expected), None)
