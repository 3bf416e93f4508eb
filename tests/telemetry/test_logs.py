"""One line per record."""

from __future__ import annotations

import json
import logging
import os
import re
import signal
import sys

import pytest

from rhizome_telemetry.log_level import LevelSwitch
from rhizome_telemetry.logs import (
    JsonFormatter,
    LineFormatter,
    about,
    configure_logging,
    log_request_id,
    log_trace_id,
)
from rhizome_telemetry.propagation import parse_traceparent


def render(message: str, *arguments: object, **options: object) -> str:
    record = logging.LogRecord("x", logging.INFO, "file", 1, message, arguments, None)
    record.__dict__.update(options)
    return LineFormatter("rhizome-engine").format(record)


def test_a_line_has_time_level_service_and_message():
    line = render("core %s ready", "one")
    assert re.fullmatch(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{3}Z INFO rhizome-engine core one ready", line)


def test_the_trace_of_the_request_is_named():
    token = log_trace_id.set("abc")
    try:
        assert render("hello").endswith("hello trace=abc")
    finally:
        log_trace_id.reset(token)
    assert render("hello", trace_id="def").endswith("trace=def")


def test_the_request_is_named_before_the_trace():
    record = {"request_id": "req_1", "trace_id": "def"}
    assert render("hello", **record).endswith("hello request=req_1 trace=def")
    token = log_request_id.set("req_2")
    try:
        assert render("hello").endswith("hello request=req_2")
    finally:
        log_request_id.reset(token)


def test_a_record_is_told_whose_it_is():
    parent = parse_traceparent(f"00-{'a' * 32}-{'b' * 16}-01", request_id="req_1")
    assert about(parent, "other") == {"request_id": "req_1", "trace_id": "a" * 32}
    assert about(None, "other") == {"request_id": "other"}


@pytest.mark.parametrize("end", ["\n", "\r", "\x85", "\u2028", "\x1b[2J"])
def test_a_message_cannot_forge_a_second_record(end):
    for line in (render("user said %s", f"x{end}2026 INFO forged"), render("x", request_id=f"x{end}y")):
        assert end[0] not in line and len(line.splitlines()) == 1


def as_json(message: str, *arguments: object, **options: object) -> dict[str, object]:
    record = logging.LogRecord("rhizome_x.y", logging.WARNING, "file", 1, message, arguments, None)
    record.__dict__.update(options)
    line = JsonFormatter("rhizome-engine").format(record)
    assert len(line.splitlines()) == 1 and line.isascii()
    found: dict[str, object] = json.loads(line)
    return found


def test_an_object_has_everything_a_line_has():
    found = as_json("core %s ready", "\u2028 one\n", request_id="req_1", trace_id="def")
    assert re.fullmatch(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{3}Z", str(found.pop("time")))
    assert found == {
        "level": "WARNING",
        "service": "rhizome-engine",
        "pid": os.getpid(),
        "logger": "rhizome_x.y",
        "message": "core \u2028 one\n ready",
        "request_id": "req_1",
        "trace_id": "def",
    }
    assert not {"request_id", "trace_id", "exception"} & set(as_json("outside of requests"))


def test_a_traceback_is_in_the_same_object():
    try:
        raise ValueError("broken\nin two")
    except ValueError:
        found = as_json("failed", exc_info=sys.exc_info())
    assert str(found["exception"]).endswith("ValueError: broken\nin two")


def test_a_traceback_follows():
    try:
        raise ValueError("broken")
    except ValueError:
        line = render("failed", exc_info=sys.exc_info())
    assert "ValueError: broken" in line


def test_unknown_levels_are_refused():
    with pytest.raises(ValueError, match="use DEBUG"):
        configure_logging("x", "LOUD")


def test_configures_the_whole_process(capfd, own_logging):
    configure_logging("rhizome-test", "warning")
    logging.getLogger("anything").info("quiet")
    logging.getLogger("anything").warning("loud")
    err = capfd.readouterr().err
    assert "WARNING rhizome-test loud" in err
    assert "quiet" not in err


def test_signals_change_the_level_and_say_so(capfd, own_logging):
    configure_logging("rhizome-test", "WARNING", "json")
    told: list[signal.Signals] = []
    LevelSwitch("WARNING", told.append).install()
    logging.getLogger("rhizome_test").info("before")
    os.kill(os.getpid(), signal.SIGUSR1)
    logging.getLogger("rhizome_test").debug("in detail")
    logging.getLogger("some_library").debug("the prompt was ...")
    os.kill(os.getpid(), signal.SIGUSR2)
    logging.getLogger("rhizome_test").info("after")
    messages = [json.loads(line)["message"] for line in capfd.readouterr().err.splitlines()]
    assert messages == ["the log level is DEBUG now", "in detail", "the log level is WARNING now"]
    assert told == [signal.SIGUSR1, signal.SIGUSR2]
