"""Logs that services append to while others read and cut them."""

from __future__ import annotations

from pathlib import Path

import pytest

from rhizome_launcher.log_file import LogReader, older, rotate, tail


@pytest.fixture
def log(tmp_path: Path) -> Path:
    return tmp_path / "engine.log"


def append(log: Path, text: str) -> None:
    with log.open("a") as file:
        file.write(text)


def test_a_reader_takes_each_complete_line_once(log: Path) -> None:
    reader = LogReader(log)
    assert reader.lines() == []
    append(log, "one\ntw")
    assert reader.lines() == ["one"]
    assert reader.lines() == []
    append(log, "o\nthree")
    assert reader.lines() == ["two"]
    assert reader.remainder() == ["three"]
    assert reader.remainder() == []


def test_a_reader_may_begin_in_the_middle(log: Path) -> None:
    append(log, "old\n")
    reader = LogReader(log, log.stat().st_size)
    append(log, "new\n")
    assert reader.lines() == ["new"]


def test_nothing_is_lost_to_a_reader_when_a_log_is_cut(log: Path) -> None:
    reader = LogReader(log)
    append(log, "read before\nhalf a ")
    assert reader.lines() == ["read before"]
    append(log, "line\nnot read\n")
    assert rotate(log, 10, kept=2)
    append(log, "after\n")
    assert reader.lines() == ["half a line", "not read", "after"]


def test_only_what_is_too_large_is_cut_and_so_many_are_kept(log: Path) -> None:
    assert not rotate(log, 10, kept=2)
    for number in range(4):
        append(log, f"this is text {number}\n")
        assert rotate(log, 10, kept=2)
        assert log.read_text() == ""
    assert not rotate(log, 10, kept=2)
    assert [older(log, number).read_text() for number in (1, 2)] == ["this is text 3\n", "this is text 2\n"]
    assert sorted(path.name for path in log.parent.iterdir()) == [
        "engine.log",
        "engine.log.1",
        "engine.log.2",
    ]


def test_a_writer_that_has_it_open_goes_on_at_the_beginning(log: Path) -> None:
    with log.open("ab", buffering=0) as writer:  # as a service has it
        writer.write(b"a" * 100)
        rotate(log, 10, kept=1)
        writer.write(b"b\n")
    assert log.read_bytes() == b"b\n"


def test_the_tail_is_for_a_message(log: Path) -> None:
    assert tail(log) == "(no output)"
    append(log, "x" * 50 + "the end\n")
    assert tail(log, 8) == "the end"
