"""The grammar of one request: what is asked for, composed, compiled once, and refused where it is wrong."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping

from rhizome.engine.v1 import generate_pb2
from rhizome_gateway.errors import ApiError
from rhizome_gateway.structure.checker import GrammarChecker, to_proto
from rhizome_gateway.structure.reasons import public_reason
from rhizome_gateway.structure.rules import Rules
from rhizome_gateway.structure.schema import (
    Answer,
    ResponseFormat,
    StructuredOutputs,
    wanted_answer,
)
from rhizome_gateway.structure.thinking import Thinking, add_start
from rhizome_gateway.structure.tool_grammar import ToolCalls, add_calls
from rhizome_grammar.errors import CompilerBusyError, GrammarError
from rhizome_grammar.spec import Grammar


async def grammar_for(
    checker: GrammarChecker,
    *,
    response_format: ResponseFormat | None = None,
    structured_outputs: StructuredOutputs | None = None,
    tool_calls: ToolCalls | None = None,
    thinking: Thinking | None = None,
) -> generate_pb2.Grammar | None:
    """The grammar to send with a request, None where its answer may be any text.

    A format binds the text of the answer. Where tools may be called as well, the answer is either calls or
    text of that format; where a call is required, it is calls, and the format has nothing to bind.

    Args:
        checker: of the served model.
        response_format: as the client sent it.
        structured_outputs: as the client sent it; excludes the former.
        tool_calls: None without tools, and for `tool_choice: none`.
        thinking: None where the model does not think, or was told not to.

    Raises:
        ApiError: 400, with the field in `param`: the grammar is wrong, too large or too slow;
            503: too many grammars are being compiled.
    """
    if not _binds(response_format, structured_outputs, tool_calls):
        return None
    try:
        markers = await checker.markers(_markers(tool_calls, thinking))
    except GrammarError as error:
        raise ApiError(400, f"{error}.", code="unsupported_parameter") from error

    async def checked(calls: ToolCalls | None) -> generate_pb2.Grammar:
        # Large schemas take milliseconds to read.
        grammar, params = await asyncio.to_thread(
            _composed, response_format, structured_outputs, calls, thinking, markers.__getitem__
        )
        return await _checked(checker, grammar, params)

    held = tool_calls and tool_calls.held_to_schemas()
    try:
        return await checked(held)
    except ApiError as error:
        if held is tool_calls or error.status != 400:
            raise
    return await checked(tool_calls)


async def _checked(
    checker: GrammarChecker, grammar: Grammar, params: Mapping[str, str]
) -> generate_pb2.Grammar:
    try:
        await checker.check(grammar)
    except CompilerBusyError as error:
        raise _busy() from error
    except GrammarError as error:
        raise await _refusal(checker, grammar, params, error) from error
    return to_proto(grammar)


def _binds(
    response_format: ResponseFormat | None,
    structured_outputs: StructuredOutputs | None,
    calls: ToolCalls | None,
) -> bool:
    formatted = response_format is not None and response_format.type != "text"
    return formatted or structured_outputs is not None or (calls is not None and calls.required)


def _markers(calls: ToolCalls | None, thinking: Thinking | None) -> frozenset[str]:
    """What may be special tokens."""
    notation = calls.format.notation if calls is not None else None
    around = thinking.markers.markers if thinking is not None else frozenset()
    return around | (notation.markers if notation is not None else frozenset())


def _composed(
    response_format: ResponseFormat | None,
    structured_outputs: StructuredOutputs | None,
    calls: ToolCalls | None,
    thinking: Thinking | None,
    marker: Callable[[str], str],
) -> tuple[Grammar, Mapping[str, str]]:
    """The grammar, and from which field each of its parts came; the whole of it is part ``."""
    answer = wanted_answer(response_format, structured_outputs)
    if calls is None and thinking is None:
        assert answer is not None
        return answer.grammar, {"": answer.param}
    rules = Rules()
    bodies = []
    if calls is not None:
        add_calls(rules, calls, marker)
        bodies.append("calls")
    if answer is not None and not (calls is not None and calls.required):
        bodies.append(rules.add_part("format", answer.grammar, answer.param))
    add_start(rules, " | ".join(bodies), thinking, marker)
    whole = "tools" if calls is not None else _param_of(answer)
    try:
        return rules.grammar(), {"": whole, **rules.params}
    except ValueError as error:
        raise ApiError(
            400,
            f"Together, what binds the answer is too large: {error}.",
            code="invalid_value",
            param=whole,
        ) from None


def _param_of(answer: Answer | None) -> str:
    assert answer is not None
    return answer.param


async def _refusal(
    checker: GrammarChecker, grammar: Grammar, params: Mapping[str, str], error: GrammarError
) -> ApiError:
    """Find the part that is to blame: one that does not compile on its own."""
    for name, part in grammar.parts:
        try:
            await checker.check(part)
        except CompilerBusyError:
            return _busy()
        except GrammarError as reason:
            return _rejected(part, params[name], reason)
    return _rejected(grammar, params[""], error)


def _rejected(grammar: Grammar, param: str, error: GrammarError) -> ApiError:
    is_schema = grammar.kind in ("json_schema", "json_object")
    kind = "JSON schema" if is_schema else "grammar"
    return ApiError(
        400,
        f"The {kind} in {param} cannot be used: {public_reason(str(error), grammar)}.",
        code="invalid_json_schema" if is_schema else "invalid_value",
        param=param,
    )


def _busy() -> ApiError:
    return ApiError(
        503,
        "Too many grammars are being compiled. Try again in a moment.",
        kind="server_error",
        code="overloaded",
        headers={"Retry-After": "1"},
    )
