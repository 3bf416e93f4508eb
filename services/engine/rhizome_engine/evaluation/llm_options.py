"""Settings of `LLM` from texts such as `max_step_tokens=1024`."""

from __future__ import annotations

import inspect
import json
from collections.abc import Sequence
from dataclasses import fields, replace
from typing import Any

from rhizome_engine.llm import LLM
from rhizome_engine.scheduler.config import SchedulerConfig


def parse_options(texts: Sequence[str]) -> dict[str, Any]:
    """Read `name=value` texts; a value that is JSON is what it says, any other is itself. The last one wins.

    Raises:
        ValueError: a text has no name, or `LLM` knows no such setting.
    """
    known = _llm_settings() | _scheduler_settings()
    options: dict[str, Any] = {}
    for text in texts:
        name, separator, value = text.partition("=")
        name = name.strip().replace("-", "_")
        if not separator or name not in known:
            raise ValueError(
                f"{text!r} is no engine option: write name=value with one of {', '.join(sorted(known))}"
            )
        options[name] = _value(value.strip())
    return options


def make_llm(model: str, options: dict[str, Any], *, min_rows: int = 1) -> LLM:
    """Load a checkpoint with parsed options.

    Args:
        model: checkpoint directory.
        options: made by `parse_options`.
        min_rows: requests that must be computed together, unless `max_batch_size` says otherwise.

    Raises:
        ValueError: a value is out of range, or the checkpoint cannot be loaded.
    """
    scheduler = {name: value for name, value in options.items() if name in _scheduler_settings()}
    config = SchedulerConfig(**scheduler)
    if "max_batch_size" not in options:
        config = replace(config, max_batch_size=max(config.max_batch_size, min_rows))
    rest = {name: value for name, value in options.items() if name not in scheduler}
    return LLM(model, scheduler=config, **rest)


def _llm_settings() -> set[str]:
    """What `LLM` takes by name."""
    return {*inspect.signature(LLM).parameters} - {"model", "scheduler"}


def _scheduler_settings() -> set[str]:
    return {field.name for field in fields(SchedulerConfig)}


def _value(text: str) -> Any:
    try:
        return json.loads(text)
    except ValueError:
        return text
