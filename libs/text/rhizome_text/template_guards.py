"""Filters and methods that can make much out of little, and what each asks of the budget before it runs."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterable, Mapping
from functools import wraps
from itertools import islice
from typing import Any

from jinja2.sandbox import SandboxedEscapeFormatter, SandboxedFormatter
from jinja2.utils import Namespace

from rhizome_text.template_budget import (
    MAX_COUNT,
    MAX_INT_BITS,
    MAX_NODES,
    Budget,
    TemplateLimitError,
    active_budget,
)

CONTAINERS = (list, tuple, dict, Namespace)

_FILTER_STEPS = 8
_MAX_INDENT = 64
_MAX_JSON_SEPARATOR = 16
_LARGE_NUMBER = re.compile(r"\*|\d{5}")

_READS_CONTAINERS = frozenset(
    (
        "attr",
        "batch",
        "count",
        "d",
        "default",
        "dictsort",
        "first",
        "groupby",
        "items",
        "last",
        "length",
        "list",
        "map",
        "max",
        "min",
        "random",
        "reject",
        "rejectattr",
        "reverse",
        "select",
        "selectattr",
        "slice",
        "sort",
        "sum",
        "tojson",
        "unique",
    )
)
"""Filters that do not turn a container into text at once."""

_NESTS = frozenset(("batch", "dictsort", "groupby", "items", "list", "slice", "unique"))
"""Filters that may put containers into containers."""

_MULTIPLIES = frozenset(("indent", "urlize", "wordwrap"))
_COUNTS = frozenset(("batch", "center", "filesizeformat", "round", "slice", "truncate"))


def guarded_filter(name: str, function: Callable[..., Any]) -> Callable[..., Any]:
    """The same filter, within the budget of the render that runs it."""
    first = 1 if hasattr(function, "jinja_pass_arg") else 0

    @wraps(function)
    def guarded(*args: Any, **kwargs: Any) -> Any:
        budget = active_budget()
        budget.spend(_FILTER_STEPS)
        args = _checked(budget, name, args, kwargs, first)
        made = function(*args, **kwargs)
        if isinstance(made, str):
            budget.spend_chars(len(made))
        elif name in _NESTS and isinstance(made, CONTAINERS):
            budget.weigh(made)
        elif isinstance(made, (list, tuple)):
            budget.spend_items(len(made))
        return made

    return guarded


def _checked(
    budget: Budget, name: str, args: tuple[Any, ...], kwargs: Mapping[str, Any], first: int
) -> tuple[Any, ...]:
    """The arguments, those that can be read only once as lists."""
    value, options = args[first], (*args[first + 1 :], *kwargs.values())
    if name in _READS_CONTAINERS:
        if name == "tojson":
            _check_json(budget, value, options)
        elif name == "sum" and any(isinstance(option, CONTAINERS) for option in options):
            raise TemplateLimitError("it adds up lists")
    elif name == "join":
        value = _bounded_list(value)
        separator = options[0] if options else ""
        budget.require_text_of(value)
        budget.require_chars(len(value) * len(str(separator)))
        args = (*args[:first], value, *args[first + 1 :])
    else:
        for item in (value, *options):
            if isinstance(item, CONTAINERS):
                budget.require_text_of(item)
    if name in _MULTIPLIES:
        budget.require_chars((len(str(value)) + 1) * (1 + sum(map(_size, options))))
    elif name in _COUNTS:
        _check_counts(options)
    elif name == "replace":
        _check_replace(budget, str(value), options)
    elif name == "format":
        _check_percent(budget, str(value), options)
    return args


def _size(option: Any) -> int:
    return option if isinstance(option, int) else len(option) if isinstance(option, str) else 0


def _check_counts(options: Iterable[Any]) -> None:
    if any(isinstance(option, (int, float)) and abs(option) > MAX_COUNT for option in options):
        raise TemplateLimitError("it asks for too large a width or count")


def _check_json(budget: Budget, value: Any, options: Iterable[Any]) -> None:
    if any(_size(option) > _MAX_INDENT for option in options) or any(
        len(str(separator)) > _MAX_JSON_SEPARATOR
        for option in options
        if isinstance(option, (list, tuple))
        for separator in option
    ):
        raise TemplateLimitError("it indents JSON too far")
    weight = budget.weigh(value)
    budget.require_chars(weight.chars)
    if any(map(_size, options)):
        budget.require_chars(weight.chars + weight.nodes * weight.depth * _MAX_INDENT)


def _check_replace(budget: Budget, text: Any, options: tuple[Any, ...]) -> None:
    if len(options) < 2:
        return  # it fails on its own
    old, new = options[:2]
    if not isinstance(text, bytes):
        old, new = str(old), str(new)
    if len(new) > len(old):
        budget.require_chars(len(text) + text.count(old) * (len(new) - len(old)))


def _check_percent(budget: Budget, text: str, values: Any) -> None:
    if _LARGE_NUMBER.search(text):
        raise TemplateLimitError("it formats with too large a width")
    weight = budget.weigh(values)
    budget.require_chars((1 + text.count("%")) * (2 * weight.chars + 16 * weight.nodes))


def _bounded_list(values: Any) -> list[Any]:
    items = list(islice(values, MAX_NODES + 1))
    active_budget().spend_items(len(items))
    return items


def check_method(name: str, owner: Any, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> tuple[Any, ...]:
    """Ask the budget before a method of a built-in type runs.

    Returns:
        The arguments to call it with.

    Raises:
        TemplateLimitError: it would make too much.
    """
    if isinstance(owner, (str, bytes)):
        options = (*args, *kwargs.values())
        if name in ("center", "ljust", "rjust", "zfill"):
            _check_counts(options)
        elif name == "expandtabs":
            _check_counts(options)
            active_budget().require_chars((1 + len(owner)) * (1 + sum(map(_size, options)) or 8))
        elif name == "replace":
            _check_replace(active_budget(), owner, options)
        elif name == "join" and args:
            items = _bounded_list(args[0])
            total = sum(len(item) for item in items if isinstance(item, (str, bytes)))
            active_budget().require_chars(total + len(owner) * len(items))
            return (items,)
        elif name in ("split", "rsplit", "splitlines", "encode", "decode"):
            active_budget().spend_chars(len(owner))
        elif name == "translate":
            raise TemplateLimitError(f"it calls {name}, which templates may not")
    elif name in ("to_bytes", "from_bytes"):
        raise TemplateLimitError(f"it calls {name}, which templates may not")
    return args


def check_binary(operator: str, left: Any, right: Any) -> None:
    """Ask the budget before `*`, `**` or `%`.

    Raises:
        TemplateLimitError: the result would be too large.
    """
    budget = active_budget()
    if operator == "%":
        if isinstance(left, (str, bytes)):
            _check_percent(budget, str(left), right)
        return
    if operator == "*":
        for sequence, count in ((left, right), (right, left)):
            if isinstance(sequence, (str, bytes)) and isinstance(count, int):
                budget.spend_chars(len(sequence) * max(0, count))
            elif isinstance(sequence, (list, tuple)) and isinstance(count, int):
                budget.spend_items(budget.weigh(sequence).nodes * max(0, count))
    if isinstance(left, int) and isinstance(right, int):
        bits = left.bit_length() * right if operator == "**" else left.bit_length() + right.bit_length()
        if bits > MAX_INT_BITS:
            raise TemplateLimitError("it computes too large a number")


class GuardedFormatter(SandboxedFormatter):
    """`str.format` within the budget."""

    def format_field(self, value: Any, format_spec: str) -> str:
        """Write one field."""
        budget = active_budget()
        if _LARGE_NUMBER.search(format_spec):
            raise TemplateLimitError("it formats with too large a width")
        if isinstance(value, CONTAINERS):
            budget.require_text_of(value)
        text = str(super().format_field(value, format_spec))
        budget.spend_chars(len(text))
        return text

    def convert_field(self, value: Any, conversion: Any) -> Any:
        """Convert one field to text, as in `{!r}`."""
        if conversion is not None:
            active_budget().require_text_of(value)
        return super().convert_field(value, conversion)


class GuardedEscapeFormatter(GuardedFormatter, SandboxedEscapeFormatter):
    """The same of text that was marked as safe: what is put into it is escaped."""


def to_json(
    value: Any,
    ensure_ascii: bool = False,
    indent: int | None = None,
    separators: tuple[str, str] | None = None,
    sort_keys: bool = False,
) -> str:
    """`tojson` as chat templates expect it: no HTML escapes, no ASCII escapes, layout by arguments."""
    return json.dumps(
        value, ensure_ascii=ensure_ascii, indent=indent, separators=separators, sort_keys=sort_keys
    )
