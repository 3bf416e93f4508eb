"""Limits that hold over several real processes, and over their deaths."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from rhizome_gateway.auth.caller import Caller, Limits
from rhizome_gateway.auth.guard import Guard
from rhizome_gateway.auth.ledger import MemoryLedger
from rhizome_gateway.auth.shared_ledger import MAX_WORKERS, SharedLedger, create_ledger
from rhizome_gateway.errors import ApiError

WORKER = """
import sys
from pathlib import Path
from rhizome_gateway.auth.caller import Caller, Limits
from rhizome_gateway.auth.guard import Guard
from rhizome_gateway.auth.shared_ledger import SharedLedger
from rhizome_gateway.errors import ApiError

guard = Guard(SharedLedger(Path(sys.argv[1])), max_open_requests=100000)
permits = []
for line in sys.stdin:
    what, name, *numbers = line.split()
    tries, rpm, tpm, most, tokens = map(int, numbers)
    who = Caller(name=name, tenant=name, limits=Limits(rpm or None, tpm or None, most or None))
    admitted = 0
    for _ in range(tries):
        if what == "admit":
            try:
                permits.append(guard.admit(who, prompt_tokens=tokens))
                admitted += 1
            except ApiError as error:
                assert error.status == 429
        else:
            permit = permits.pop()
            permit.settle(tokens)
            permit.release()
    print(admitted, flush=True)
"""


class Worker:
    def __init__(self, path: Path) -> None:
        self.process = subprocess.Popen(
            [sys.executable, "-c", WORKER, str(path)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )

    def ask(
        self, what: str, times: int, *, rpm: int = 0, tpm: int = 0, most: int = 0, tokens: int = 0
    ) -> None:
        assert self.process.stdin is not None
        self.process.stdin.write(f"{what} alice {times} {rpm} {tpm} {most} {tokens}\n")
        self.process.stdin.flush()

    def answer(self) -> int:
        assert self.process.stdout is not None
        return int(self.process.stdout.readline())

    def run(self, what: str, times: int, **limits: int) -> int:
        self.ask(what, times, **limits)
        return self.answer()

    def kill(self) -> None:
        self.process.kill()
        self.process.wait()
        for pipe in (self.process.stdin, self.process.stdout):
            assert pipe is not None
            pipe.close()


StartWorker = Callable[[], Worker]


@pytest.fixture
def ledger_path(tmp_path: Path) -> Path:
    path = tmp_path / "ledger"
    create_ledger(path)
    return path


@pytest.fixture
def start_worker(ledger_path: Path) -> Iterator[StartWorker]:
    started: list[Worker] = []

    def start() -> Worker:
        started.append(Worker(ledger_path))
        return started[-1]

    yield start
    for worker in started:
        if worker.process.poll() is None:
            worker.kill()


def test_workers_together_admit_no_more_than_one_would(start_worker):
    workers = [start_worker() for _ in range(3)]
    for worker in workers:
        worker.ask("admit", 1500, rpm=1000)
    admitted = sum(worker.answer() for worker in workers)
    assert 1000 <= admitted <= 1000 + 20 * 1000 / 60  # it fills up while they run


def test_open_requests_are_counted_over_all_workers_and_closed_ones_are_not(start_worker):
    one, other = start_worker(), start_worker()
    assert one.run("admit", 5, most=3) == 3
    assert other.run("admit", 1, most=3) == 0
    one.run("release", 2, most=3)
    assert other.run("admit", 5, most=3) == 2


def test_tokens_settled_in_one_worker_are_there_in_the_other(start_worker):
    one, other = start_worker(), start_worker()
    assert one.run("admit", 1, tpm=60, tokens=60) == 1
    assert other.run("admit", 1, tpm=60, tokens=50) == 0
    one.run("release", 1, tpm=60, tokens=0)
    assert other.run("admit", 1, tpm=60, tokens=50) == 1


def test_what_a_killed_worker_had_open_is_closed(start_worker):
    dies, lives = start_worker(), start_worker()
    assert dies.run("admit", 3, most=3) == 3
    assert lives.run("admit", 1, most=3) == 0
    dies.kill()
    assert lives.run("admit", 5, most=3) == 3


def test_a_worker_in_the_place_of_a_killed_one_begins_with_nothing_open(start_worker):
    dies = start_worker()
    assert dies.run("admit", 3, most=3) == 3
    dies.kill()
    assert start_worker().run("admit", 5, most=3) == 3


def test_what_was_used_up_stays_used_up_after_a_death(start_worker):
    dies = start_worker()
    assert dies.run("admit", 1, tpm=6, tokens=6) == 1
    dies.kill()
    assert start_worker().run("admit", 1, tpm=6, tokens=6) == 0


def test_a_shared_ledger_behaves_as_one_in_memory(ledger_path):
    limits = Limits(requests_per_minute=5, tokens_per_minute=100, max_concurrency=4)
    shared = SharedLedger(ledger_path)
    try:
        seen = []
        for ledger in (MemoryLedger(), shared):
            guard, outcomes = Guard(ledger, max_open_requests=10), []
            for name, tokens in [("a", 30), ("b", 90), ("a", 60), ("a", 30), ("b", 20), ("a", 1), ("a", 1)]:
                who = Caller(name=name, tenant=name, limits=limits)
                try:
                    permit = guard.admit(who, prompt_tokens=tokens)
                except ApiError as error:
                    outcomes.append((error.status, error.headers["x-ratelimit-remaining-requests"]))
                else:
                    permit.settle(tokens // 2)
                    outcomes.append((200, permit.headers["x-ratelimit-remaining-tokens"]))
            seen.append(outcomes)
        assert seen[0] == seen[1]
        assert {status for status, _ in seen[0]} == {200, 429}
    finally:
        shared.close()


def test_the_file_is_for_its_user_only_and_never_an_old_one(ledger_path):
    assert ledger_path.stat().st_mode & 0o777 == 0o600
    with pytest.raises(FileExistsError):
        create_ledger(ledger_path)


def test_a_file_that_is_no_ledger_is_refused(tmp_path):
    (tmp_path / "x").write_bytes(b"x")
    with pytest.raises(OSError, match="no ledger"):
        SharedLedger(tmp_path / "x")


def test_there_are_places_for_more_workers_than_a_machine_runs():
    assert MAX_WORKERS >= 64
