"""How a step's tokens are shared among the prompts that are being computed.

Equal shares, first among tenants, then among the prompts of each; what somebody does not need goes to the
others. So a short prompt is done in one step while a long one goes on with the rest, and one tenant's long
prompts slow another's down by no more than the number of tenants.
"""

from __future__ import annotations

from collections.abc import Hashable, Sequence


def share_budget(
    wanted: Sequence[int], owners: Sequence[Hashable], budget: int, cap: int | None
) -> list[int]:
    """Divide a budget.

    Args:
        wanted: tokens that each prompt still needs.
        owners: whose prompt each is.
        budget: tokens to give.
        cap: most that one prompt gets; None for no cap.

    Returns:
        Tokens for each prompt, their sum is at most `budget`.
    """
    limits = [want if cap is None else min(want, cap) for want in wanted]
    prompts: dict[Hashable, list[int]] = {}
    for index, owner in enumerate(owners):
        prompts.setdefault(owner, []).append(index)
    per_owner = _fill([sum(limits[index] for index in indices) for indices in prompts.values()], budget)
    shares = [0] * len(wanted)
    for indices, amount in zip(prompts.values(), per_owner, strict=True):
        for index, share in zip(indices, _fill([limits[i] for i in indices], amount), strict=True):
            shares[index] = share
    return shares


def _fill(limits: Sequence[int], amount: int) -> list[int]:
    """Raise all shares evenly until the amount is used up or every limit is reached."""
    shares = [0] * len(limits)
    left = len(limits)
    for index in sorted(range(len(limits)), key=limits.__getitem__):
        # Rounded up, so that a budget smaller than the number of prompts is still given away.
        shares[index] = min(limits[index], -(-amount // left))
        amount -= shares[index]
        left -= 1
    return shares
