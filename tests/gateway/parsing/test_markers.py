import re

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tests.gateway.parsing.outcome import cut

from rhizome_gateway.parsing.markers import MarkerSearch

MARKERS = ["<ab>", "</ab>", "<<b", "ba"]


@given(text=st.text(alphabet="<ab/>x", max_size=40), data=st.data())
@settings(max_examples=600, deadline=None)
def test_markers_are_found_however_the_text_is_cut(text: str, data: st.DataObject) -> None:
    search, found = MarkerSearch(MARKERS), [""]
    for piece in data.draw(cut(text)):
        at = 0
        while at < len(piece):
            shown, marker, at = search.feed(piece, at)
            found[-1] += shown
            if marker:
                found += [marker, ""]
    found[-1] += search.flush()
    assert found == re.split("(" + "|".join(map(re.escape, MARKERS)) + ")", text)


def test_only_the_beginning_of_a_marker_is_held_back() -> None:
    search = MarkerSearch(MARKERS)
    assert search.feed("a < b <a") == ("a < b ", None, 8)
    assert search.feed("c") == ("<ac", None, 1)


@pytest.mark.parametrize("markers", [["<a>", ""], ["<a>", "<a>"], ["<a>", "x<a>y"]])
def test_markers_that_contain_each_other_are_refused(markers: list[str]) -> None:
    with pytest.raises(ValueError, match="contain"):
        MarkerSearch(markers)
