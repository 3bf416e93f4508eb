import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from rhizome_text.stop import StopStrings

LETTERS = st.text(alphabet="ab\n", max_size=24)
STOPS = st.lists(st.text(alphabet="ab\n", min_size=1, max_size=5), min_size=1, max_size=4)


def _reference(text: str, stops: list[str]) -> tuple[str, str | None]:
    """Look at every prefix of the text, the way a reader would."""
    for end in range(len(text) + 1):
        ending = [stop for stop in stops if text[:end].endswith(stop)]
        if ending:
            longest = max(ending, key=len)
            return text[: end - len(longest)], longest
    return text, None


@given(text=LETTERS, stops=STOPS, data=st.data())
@settings(max_examples=600, deadline=None)
def test_every_split_gives_what_brute_force_gives(text: str, stops: list[str], data: st.DataObject) -> None:
    cuts = sorted(data.draw(st.sets(st.integers(0, len(text)))))
    stop, shown, matched = StopStrings(stops), "", None
    for a, b in zip([0, *cuts], [*cuts, len(text)], strict=True):
        piece, matched = stop.push(text[a:b])
        shown += piece
        # What could still become a stop string is not out, and everything else is.
        expected, _ = _reference(text[:b], stops)
        could_be = max((n for s in stops for n in range(len(s)) if text[:b].endswith(s[:n])), default=0)
        assert shown == (expected if matched else text[: b - could_be])
    shown += stop.flush()
    assert (shown, matched) == _reference(text, stops)


def test_nothing_follows_a_match() -> None:
    stop = StopStrings(["END"])
    assert stop.push("one EN") == ("one ", None)
    assert stop.push("D two") == ("", "END")
    assert stop.push("three") == ("", "END")
    assert stop.flush() == ""


def test_the_match_is_shown_where_asked_for() -> None:
    stop = StopStrings(["\n\n"], include=True)
    assert stop.push("a\n") == ("a", None)
    assert stop.push("\nb") == ("\n\n", "\n\n")


def test_an_empty_stop_string_is_refused() -> None:
    with pytest.raises(ValueError, match="must not be empty"):
        StopStrings(["a", ""])
