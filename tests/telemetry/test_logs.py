"""One line per record."""

from __future__ import annotations

import logging
import re
import sys

import pytest

from rhizome_telemetry.logs import LineFormatter, configure_logging, log_trace_id


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


def test_a_message_cannot_forge_a_second_record():
    assert "\n" not in render("user said %s", "x\n2026 INFO forged")


def test_a_traceback_follows():
    try:
        raise ValueError("broken")
    except ValueError:
        line = render("failed", exc_info=sys.exc_info())
    assert "ValueError: broken" in line


def test_unknown_levels_are_refused():
    with pytest.raises(ValueError, match="use DEBUG"):
        configure_logging("x", "LOUD")


def test_configures_the_whole_process(capfd):
    root = logging.getLogger()
    before, level = root.handlers[:], root.level
    try:
        configure_logging("rhizome-test", "warning")
        logging.getLogger("anything").info("quiet")
        logging.getLogger("anything").warning("loud")
    finally:
        logging.captureWarnings(False)
        root.handlers[:] = before
        root.setLevel(level)
    err = capfd.readouterr().err
    assert "WARNING rhizome-test loud" in err
    assert "quiet" not in err
