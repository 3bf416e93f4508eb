from collections import Counter

import pytest
from hypothesis import given
from hypothesis import strategies as st

from rhizome_engine.scheduler.prefill_budget import share_budget

prompts = st.lists(st.tuples(st.integers(0, 40), st.sampled_from("abc")), max_size=12)


@given(prompts=prompts, budget=st.integers(0, 120), cap=st.none() | st.integers(1, 30))
def test_the_budget_is_kept_and_nothing_of_it_is_left_that_somebody_may_have(prompts, budget, cap):
    wanted = [want for want, _ in prompts]
    shares = share_budget(wanted, [owner for _, owner in prompts], budget, cap)
    limits = [want if cap is None else min(want, cap) for want in wanted]
    assert all(0 <= share <= limit for share, limit in zip(shares, limits, strict=True))
    assert sum(shares) == min(budget, sum(limits))


@given(prompts=prompts, budget=st.integers(0, 120), cap=st.none() | st.integers(1, 30))
def test_who_gets_less_than_it_may_have_gets_as_much_as_anybody(prompts, budget, cap):
    """Max-min fairness, up to a token of rounding: among tenants, then within each."""
    wanted, owners = [want for want, _ in prompts], [owner for _, owner in prompts]
    shares = share_budget(wanted, owners, budget, cap)
    limits = [want if cap is None else min(want, cap) for want in wanted]
    by_owner, limit_of_owner = Counter(), Counter()
    for owner, share, limit in zip(owners, shares, limits, strict=True):
        by_owner[owner] += share
        limit_of_owner[owner] += limit
    for owner in set(owners):
        if by_owner[owner] < limit_of_owner[owner]:
            assert by_owner[owner] >= max(by_owner.values()) - 1
        of_owner = [i for i, other in enumerate(owners) if other == owner]
        for index in of_owner:
            if shares[index] < limits[index]:
                assert shares[index] >= max(shares[i] for i in of_owner) - 1


@pytest.mark.parametrize(
    ("wanted", "owners", "budget", "cap", "shares"),
    [
        ([4000, 30], "aa", 512, None, [482, 30]),  # a short prompt is done at once beside a long one
        ([4000, 4000], "aa", 512, None, [256, 256]),
        ([4000, 4000, 4000, 4000], "aaab", 512, None, [86, 85, 85, 256]),
        ([4000, 4000], "aa", 512, 100, [100, 100]),
        ([5, 5, 5], "aaa", 2, None, [1, 1, 0]),
        ([], "", 8, None, []),
    ],
)
def test_shares_by_example(wanted, owners, budget, cap, shares):
    assert share_budget(wanted, owners, budget, cap) == shares
