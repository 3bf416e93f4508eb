"""Who has to make room.

When pages run out, the last in rank of the tenant that runs most requests (of the lowest priority that runs).
The first in rank is never chosen while anybody else runs.

So that a waiting request can start, only somebody whose claim is weaker, lest he takes back what was taken:

    priority   a request of lower priority gives way
    fairness   the tenant that runs most requests gives way to one that runs at least two fewer; after the
               change it still runs as many
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence

from rhizome_engine.scheduler.config import SchedulerConfig
from rhizome_engine.scheduler.request import Request


def plan_displacement(
    request: Request,
    running: Sequence[Request],
    config: SchedulerConfig,
    has_room: Callable[[Sequence[Request]], bool],
) -> list[Request] | None:
    """Who gives way so that a waiting request can start; None, and nobody has to, where that is not enough.

    Args:
        request: wants to start.
        running: in order of rank.
        config: policy and fairness.
        has_room: whether the request could start without some of the running ones.
    """
    left, victims = list(running), list[Request]()
    while not has_room(victims):
        victim = choose_victim(request, left, config)
        if victim is None:
            return None
        left.remove(victim)
        victims.append(victim)
    return victims


def choose_victim(request: Request, running: Sequence[Request], config: SchedulerConfig) -> Request | None:
    """The running request that gives way, the last in rank of those that must; None for nobody.

    Args:
        request: wants to start.
        running: in order of rank.
        config: policy and fairness.
    """
    by_priority = config.policy == "priority"
    if by_priority and running and running[-1].priority < request.priority:
        return running[-1]
    if not config.fairness or len(running) < 2:
        return None
    rows = Counter(other.tenant for other in running)
    tenant, most = rows.most_common(1)[0]
    if most < rows[request.tenant] + 2:
        return None
    for other in reversed(running):
        if other.tenant == tenant:
            return None if by_priority and other.priority > request.priority else other
    return None


def weakest(running: Sequence[Request], config: SchedulerConfig) -> Request:
    """The running request that gives its pages back when they run out.

    Args:
        running: at least one, in order of rank.
        config: policy and fairness.
    """
    last = running[-1]
    if not config.fairness:
        return last
    rows = Counter(other.tenant for other in running)
    equals = [r for r in running if config.policy != "priority" or r.priority == last.priority]
    most = max(rows[request.tenant] for request in equals)
    return next(request for request in reversed(equals) if rows[request.tenant] == most)
