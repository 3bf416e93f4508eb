"""Jobs that block stand for native code that does not come back."""

import threading

import pytest

from rhizome_grammar.errors import CompilerBusyError, GrammarError
from rhizome_grammar.timed_pool import TimedPool

LIMIT_S = 0.4
"""Short, but more than a job that does nothing takes on a machine that computes for others."""


@pytest.fixture
def gate():
    event = threading.Event()
    yield event
    event.set()


def ended(pool):
    """Wait until no overdue job is left."""
    return next(n for n in iter(lambda: pool.num_overdue, None) if n == 0) == 0


def test_returns_results_and_raises_errors():
    pool = TimedPool(2, 10)
    assert pool.submit(lambda: 7).result(10) == 7
    with pytest.raises(ZeroDivisionError):
        pool.submit(lambda: 1 // 0).result(10)


def test_runs_no_more_at_once_than_it_has_workers(gate):
    pool, running = TimedPool(2, 10), []
    futures = [pool.submit(lambda: (running.append(1), gate.wait())) for _ in range(5)]
    while len(running) < 2:
        pass
    assert len(running) == 2 and not any(future.done() for future in futures)
    gate.set()
    for future in futures:
        future.result(10)


def test_a_job_that_overruns_fails_at_the_limit_and_gives_its_place_away(gate):
    pool = TimedPool(1, LIMIT_S)
    stuck = pool.submit(gate.wait)
    behind = pool.submit(lambda: "done")
    with pytest.raises(GrammarError, match=r"took more than 0\.4 s"):
        stuck.result(10)
    assert behind.result(10) == "done"
    assert pool.num_overdue == 1
    gate.set()
    assert ended(pool)


def test_overdue_jobs_are_limited_and_those_behind_them_fail_in_time(gate):
    pool = TimedPool(1, LIMIT_S, max_overdue=1, wait_s=0.5)
    stuck = [pool.submit(gate.wait) for _ in range(2)]
    for future in stuck:
        with pytest.raises(GrammarError, match="took more than"):
            future.result(10)
    late = pool.submit(lambda: 1)
    with pytest.raises(CompilerBusyError, match="try again"):
        late.result(10)
    gate.set()
    assert ended(pool)
    assert pool.submit(lambda: 2).result(10) == 2


def test_its_watch_ends_with_the_last_job_and_starts_again(gate):
    pool = TimedPool(1, LIMIT_S)
    for _ in range(2):
        assert pool.submit(lambda: 1).result(10) == 1
        with pytest.raises(GrammarError):
            pool.submit(gate.wait).result(10)


def test_no_thread_outlives_its_job():
    pool, others = TimedPool(2, 10), set(threading.enumerate())
    for _ in range(20):
        pool.submit(lambda: None).result(10)
    for thread in set(threading.enumerate()) - others:
        if thread.name.startswith("grammar-"):
            thread.join(10)
            assert not thread.is_alive()


def test_other_threads_keep_their_stack_size():
    before = threading.stack_size()
    TimedPool(1, 10).submit(lambda: None).result(10)
    assert threading.stack_size() == before
