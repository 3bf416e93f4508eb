"""Windows over a text score each of its tokens once, and never without enough context."""

from __future__ import annotations

import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from rhizome_engine.evaluation.windows import sliding_windows

BOS = 10_000


@given(
    length=st.integers(0, 300),
    context=st.integers(2, 64),
    stride=st.integers(1, 64),
    with_bos=st.booleans(),
)
def test_every_token_is_scored_once_in_order(length: int, context: int, stride: int, with_bos: bool) -> None:
    assume(stride <= context - 1)
    ids = list(range(length))
    windows = list(sliding_windows(ids, context=context, stride=stride, bos_id=BOS if with_bos else None))
    scored = [id_ for window in windows for id_ in window.token_ids[window.first_scored :]]
    assert scored == ids[0 if with_bos else 1 :]
    for number, window in enumerate(windows):
        assert len(window.token_ids) <= context
        assert (window.token_ids[0] == BOS) is with_bos
        text = window.token_ids[with_bos:]
        assert text == list(range(text[0], text[0] + len(text)))  # nothing is left out inside a window
        if number:  # what is scored lies behind as much context as the stride leaves
            assert window.first_scored >= context - stride


def test_a_window_may_start_where_the_one_before_ended_after_bos() -> None:
    windows = list(sliding_windows([1, 2, 3, 4, 5], context=3, stride=2, bos_id=BOS))
    assert [(w.token_ids, w.first_scored) for w in windows] == [
        ([BOS, 1, 2], 1),
        ([BOS, 3, 4], 1),
        ([BOS, 5], 1),
    ]


@pytest.mark.parametrize(
    ("context", "stride", "bos"), [(8, 8, None), (8, 8, BOS), (8, 0, None), (1, 1, None)]
)
def test_a_stride_that_would_skip_tokens_is_refused(context: int, stride: int, bos: int | None) -> None:
    with pytest.raises(ValueError, match="stride must be between 1 and"):
        list(sliding_windows([1, 2, 3], context=context, stride=stride, bos_id=bos))
