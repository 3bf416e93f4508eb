"""The Jinja environment of chat templates: what `transformers` documents, within a budget.

A template renders the same bytes as there. The difference is in the code that Jinja generates: rounds of
loops, joins, slices and nested literals pass through methods here, which draw on the budget of the render.
"""

from __future__ import annotations

import types
from collections.abc import Iterable, Mapping
from datetime import datetime
from typing import Any, NoReturn

import jinja2
from jinja2 import nodes
from jinja2.ext import Extension
from jinja2.parser import Parser
from jinja2.runtime import Context, LoopContext, Macro
from jinja2.sandbox import ImmutableSandboxedEnvironment
from jinja2.utils import Namespace, generate_lorem_ipsum
from markupsafe import Markup

from rhizome_text.template_budget import TemplateLimitError, active_budget
from rhizome_text.template_compiler import BudgetedCode
from rhizome_text.template_guards import (
    CONTAINERS,
    GuardedEscapeFormatter,
    GuardedFormatter,
    check_binary,
    check_method,
    guarded_filter,
    to_json,
)

_COMPARING_TESTS = frozenset(
    (
        "==",
        "!=",
        "<",
        "<=",
        ">",
        ">=",
        "eq",
        "equalto",
        "ge",
        "greaterthan",
        "gt",
        "in",
        "le",
        "lessthan",
        "lt",
        "ne",
    )
)
_DICT_ATTRIBUTES = frozenset(dir(dict))
_METHODS = frozenset((types.BuiltinMethodType, types.MethodType))
_PLAIN = frozenset((str, int, float, bool, type(None)))


class TemplateRefusalError(jinja2.TemplateError):
    """The template called `raise_exception`."""


class _GenerationBlock(Extension):
    """`{% generation %}` marks the assistant's words for training; here it is only its content."""

    tags = {"generation"}  # noqa: RUF012 - jinja2's interface

    def parse(self, parser: Parser) -> nodes.Node | list[nodes.Node]:
        """Parse to a block without effect."""
        line = next(parser.stream).lineno
        return nodes.Scope(parser.parse_statements(("name:endgeneration",), drop_needle=True), lineno=line)


class _TemplateDict:
    """`dict` of templates: callable, but not a class whose attributes could be reached."""

    def __call__(self, *args: Any, **kwargs: Any) -> dict[Any, Any]:
        made = dict(*args, **kwargs)
        active_budget().weigh(made)
        return made

    def fromkeys(self, *args: Any) -> dict[Any, Any]:
        """As of `dict`."""
        made = dict.fromkeys(*args)
        active_budget().weigh(made)
        return made


class _TemplateNamespace(Namespace):
    """`namespace` of templates: no names with a leading underscore."""

    def __init__(*args: Any, **kwargs: Any) -> None:
        made, args = args[0], args[1:]
        values = dict(*args, **kwargs)
        for name in values:
            _check_name(name)
        Namespace.__init__(made, values)

    def __setitem__(self, name: str, value: Any) -> None:
        _check_name(name)
        super().__setitem__(name, value)


_ATTRIBUTES_ONLY = (_TemplateNamespace, LoopContext)
"""What has neither items nor attributes that a template must not see, but for those with an underscore."""


def _check_name(name: object) -> None:
    if isinstance(name, str) and name.startswith("_"):
        raise jinja2.exceptions.SecurityError("a name in a namespace starts with an underscore")


def _raise_exception(message: object) -> NoReturn:
    raise TemplateRefusalError(str(message))


def _strftime_now(form: str) -> str:
    return datetime.now().strftime(form)


def _lipsum(n: int = 5, html: bool = True, min: int = 20, max: int = 100) -> str:  # noqa: A002 - Jinja's names
    if n > 20 or max > 1000:
        raise TemplateLimitError("it asks for too much filler text")
    return generate_lorem_ipsum(n, html, min, max)


class ChatTemplateEnvironment(ImmutableSandboxedEnvironment):
    """The sandbox; its own methods below are called by generated code."""

    code_generator_class = BudgetedCode
    intercepted_binops = frozenset(("*", "**", "%"))

    def __init__(self) -> None:
        super().__init__(
            trim_blocks=True,
            lstrip_blocks=True,
            extensions=[_GenerationBlock, "jinja2.ext.loopcontrols"],
            cache_size=0,
        )
        self.globals |= {
            "dict": _TemplateDict(),
            "lipsum": _lipsum,
            "namespace": _TemplateNamespace,
            "raise_exception": _raise_exception,
            "strftime_now": _strftime_now,
        }
        self.filters["tojson"] = to_json
        self.filters = {name: guarded_filter(name, function) for name, function in self.filters.items()}
        for name in _COMPARING_TESTS & self.tests.keys():
            self.tests[name] = _guarded_test(self.tests[name])

    def tick(self) -> None:
        """A round of a loop begins."""
        active_budget().spend()

    def text(self, value: Any) -> str:
        """A value as it is written into the prompt."""
        if type(value) is str:
            return value
        if isinstance(value, CONTAINERS):
            active_budget().require_text_of(value)
        return str(value)

    def concat(self, parts: Iterable[str]) -> str:
        """Join pieces of text: of a macro, a block, or `~`."""
        parts = list(parts)
        active_budget().spend_chars(sum(map(len, parts)))
        return "".join(parts)

    def add(self, left: Any, right: Any) -> Any:
        """`left + right`."""
        if isinstance(left, str):
            if isinstance(right, str):
                active_budget().spend_chars(len(left) + len(right))
        elif isinstance(left, (list, tuple)) and isinstance(right, (list, tuple)):
            budget = active_budget()
            budget.spend_items(len(left) + len(right))
            if isinstance(left, tuple):  # its hash is of all that is inside
                budget.weigh(left)
                budget.weigh(right)
        return left + right

    def sliced(self, value: Any) -> Any:
        """The result of a slice."""
        if isinstance(value, str):
            active_budget().spend_chars(len(value))
        elif isinstance(value, (list, tuple)):
            active_budget().spend_items(len(value))
        return value

    def nested(self, value: Any) -> Any:
        """A list, tuple or dictionary that a template wrote down."""
        active_budget().weigh(value)
        return value

    def comparable(self, value: Any) -> Any:
        """One side of a comparison."""
        if isinstance(value, CONTAINERS):
            active_budget().weigh(value)
        return value

    def call_binop(self, context: Context, operator: str, left: Any, right: Any) -> Any:
        """`*`, `**` or `%`."""
        check_binary(operator, left, right)
        return super().call_binop(context, operator, left, right)

    def getattr(self, obj: Any, attribute: str) -> Any:
        """`obj.attribute`, which for messages and tools is a key; Jinja would try the attribute first."""
        if type(obj) is dict and attribute not in _DICT_ATTRIBUTES:
            if attribute in obj:
                return obj[attribute]
            return self.undefined(obj=obj, name=attribute)
        if type(obj) in _ATTRIBUTES_ONLY and not attribute.startswith("_"):
            value = getattr(obj, attribute, None)
            if value is not None and type(value) not in _METHODS:  # which may be `str.format`
                return value
        return super().getattr(obj, attribute)

    def wrap_str_format(self, value: Any) -> Any:
        """`str.format` and `str.format_map`, sandboxed and within the budget."""
        # Of text marked as safe they are methods written in Python.
        if type(value) not in _METHODS or value.__name__ not in ("format", "format_map"):
            return None
        text = value.__self__
        if not isinstance(text, str):
            return None
        with_mapping = value.__name__ == "format_map"

        def formatted(*args: Any, **kwargs: Any) -> str:
            kwargs = {
                name: kept for name, kept in kwargs.items() if name not in ("_loop_vars", "_block_vars")
            }
            mapping: Mapping[str, Any] = args[0] if with_mapping else kwargs
            formatter = GuardedFormatter(self)
            if isinstance(text, Markup):
                formatter = GuardedEscapeFormatter(self, escape=text.escape)
            return type(text)(formatter.vformat(text, () if with_mapping else args, mapping))

        return formatted

    def call(__self, __context: Context, __obj: Any, *args: Any, **kwargs: Any) -> Any:  # noqa: N805
        """Call a macro, a method or a function."""
        budget = active_budget()
        budget.spend()
        kind = type(__obj)
        if kind is Macro:
            kwargs.pop("_loop_vars", None)
            kwargs.pop("_block_vars", None)
            return __obj(__context.eval_ctx, *args, **kwargs)
        if kind in _METHODS and (kind is types.BuiltinMethodType or isinstance(__obj.__self__, str)):
            args = check_method(__obj.__name__, __obj.__self__, args, kwargs)
        else:
            for value in (*args, *kwargs.values()):
                if type(value) not in _PLAIN and isinstance(value, CONTAINERS):
                    budget.weigh(value)
        if __obj is _TemplateNamespace:  # of every other template, in every render
            kwargs.pop("_loop_vars", None)
            kwargs.pop("_block_vars", None)
            return _TemplateNamespace(*args, **kwargs)
        made = super().call(__context, __obj, *args, **kwargs)
        if isinstance(made, str):
            budget.spend_chars(len(made))
        elif isinstance(made, (list, tuple)):
            budget.spend_items(len(made))
        return made


def _guarded_test(test: Any) -> Any:
    def guarded(*values: Any) -> bool:
        for value in values:
            if isinstance(value, CONTAINERS):
                active_budget().weigh(value)
        return bool(test(*values))

    return guarded
