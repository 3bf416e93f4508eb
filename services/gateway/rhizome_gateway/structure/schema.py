"""`response_format` and `structured_outputs`: the fields of a request that bind its answer.

`null` means the same as leaving a field out. A schema reaches the engine as text, in the order in which the
client wrote its properties, because that is the order in which they come out.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Annotated, Any, Literal, Self

import orjson
from pydantic import BeforeValidator, Field, PrivateAttr, model_validator

from rhizome_gateway.errors import ApiError
from rhizome_gateway.schema.fields import Fields, refuse
from rhizome_grammar.gbnf import is_gbnf
from rhizome_grammar.gbnf_to_lark import gbnf_to_lark
from rhizome_grammar.spec import Grammar


class JsonSchemaFormat(Fields):
    """A named JSON schema.

    `strict` is taken and changes nothing: a schema is always enforced to the letter, or refused.
    """

    name: str = Field(pattern=r"^[a-zA-Z0-9_-]{1,64}$")
    schema_: dict[str, Any] | None = Field(None, alias="schema", description="absent allows any JSON object")
    strict: bool | None = None
    description: str | None = None


class ResponseFormat(Fields):
    """How the answer is to be formed."""

    type: Literal["text", "json_object", "json_schema"]
    json_schema: JsonSchemaFormat | None = None
    schema_: dict[str, Any] | None = Field(
        None, alias="schema", description="of a json_object, as other servers take it"
    )

    @model_validator(mode="after")
    def _has_its_schema(self) -> Self:
        if self.type == "json_schema" and self.json_schema is None:
            raise refuse(
                "invalid_value",
                "response_format of type json_schema needs json_schema, with a name.",
            )
        return self


def schema_object(value: Any) -> Any:
    """A schema may be sent as an object or as the text of one."""
    if not isinstance(value, str):
        return value
    try:
        return orjson.loads(value)
    except orjson.JSONDecodeError:
        raise refuse("invalid_value", "What should be a JSON schema is no JSON.") from None


def _schema_or_nothing(value: Any) -> Any:
    return None if value == "" else schema_object(value)


SchemaOrText = Annotated[
    dict[str, Any] | None,
    BeforeValidator(_schema_or_nothing, json_schema_input_type=str | dict[str, Any] | None),
]
"""A JSON schema, as an object or as the text of one; an empty text is none."""


class StructuredOutputs(Fields):
    """One thing that the whole answer must match."""

    json_: Annotated[
        dict[str, Any] | None,
        BeforeValidator(schema_object, json_schema_input_type=str | dict[str, Any] | None),
    ] = Field(None, alias="json", description="a JSON schema")
    regex: str | None = Field(None, description="a regular expression, in Rust's syntax")
    choice: list[str] | None = Field(None, description="one of some texts")
    json_object: Literal[True] | None = Field(None, description="any JSON object")
    grammar: str | None = Field(
        None, description="a grammar in Lark's notation, as llguidance reads it, or in GBNF"
    )
    _sent_as: str | None = PrivateAttr(None)

    @model_validator(mode="after")
    def _is_one_thing(self) -> Self:
        if sum(value is not None for value in self._values().values()) != 1:
            raise refuse(
                "invalid_value",
                "structured_outputs must have exactly one of json, regex, choice, grammar, json_object.",
            )
        return self

    @property
    def wanted(self) -> tuple[str, Any]:
        """Which of the five it is, and what it holds."""
        return next((name, value) for name, value in self._values().items() if value is not None)

    @property
    def field(self) -> str:
        """The field of the request that it came in."""
        return self._sent_as or "structured_outputs"

    @property
    def param(self) -> str:
        """The client's name for it."""
        return self._sent_as or f"structured_outputs.{self.wanted[0]}"

    def sent_as(self, name: str) -> Self:
        """The same, from a field of another name."""
        self._sent_as = name
        return self

    def _values(self) -> dict[str, Any]:
        return {
            "json": self.json_,
            "regex": self.regex,
            "choice": self.choice,
            "grammar": self.grammar,
            "json_object": self.json_object,
        }


@dataclass(frozen=True, slots=True)
class Answer:
    """What the text of an answer must match.

    Attributes:
        grammar: checked as far as that is cheap.
        param: the field of the request that asked for it.
    """

    grammar: Grammar
    param: str


def wanted_answer(
    response_format: ResponseFormat | None, structured_outputs: StructuredOutputs | None
) -> Answer | None:
    """What a request wants its answer to match, None where it may be any text.

    Takes milliseconds for large schemas.

    Raises:
        ApiError: 400; both fields are given, or one is empty, too large or no schema.
    """
    formatted = response_format is not None and response_format.type != "text"
    if formatted and structured_outputs is not None:
        raise ApiError(
            400,
            f"response_format and {structured_outputs.field} cannot both bind the answer; leave one out.",
            code="invalid_value",
            param=structured_outputs.field,
        )
    if structured_outputs is not None:
        return _structured(structured_outputs)
    if response_format is None or not formatted:
        return None
    if response_format.type == "json_object":
        schema, param = response_format.schema_, "response_format.schema"
    else:
        named = response_format.json_schema
        schema, param = named.schema_ if named else None, "response_format.json_schema.schema"
    if schema is None:
        return Answer(Grammar("json_object"), "response_format")
    return Answer(schema_grammar(schema, param), param)


def schema_grammar(schema: dict[str, Any], param: str) -> Grammar:
    """The grammar of a JSON schema.

    Raises:
        ApiError: 400; it is too large or nested too deeply.
    """
    try:
        return Grammar("json_schema", orjson.dumps(schema).decode())
    except orjson.JSONEncodeError:  # it was JSON when it came
        raise ApiError(
            400, f"{param} is nested too deeply.", code="invalid_json_schema", param=param
        ) from None
    except ValueError as error:
        raise _invalid(error, "invalid_json_schema", param) from None


def _structured(wanted: StructuredOutputs) -> Answer:
    (name, value), param = wanted.wanted, wanted.param
    if name == "json":
        return Answer(schema_grammar(value, param), param)
    if name == "json_object":
        return Answer(Grammar("json_object"), param)
    try:
        if name == "choice":
            return Answer(Grammar("choice", choices=tuple(value)), param)
        if name == "regex":
            return Answer(Grammar("regex", value), param)
        grammar = Grammar("lark", value)
        return Answer(replace(grammar, text=gbnf_to_lark(value)) if is_gbnf(value) else grammar, param)
    except ValueError as error:
        raise _invalid(error, "invalid_value", param) from None


def _invalid(error: ValueError, code: str, param: str) -> ApiError:
    """The library begins with its own name of the field; clients know another one."""
    return ApiError(400, f"{param} {str(error).partition(' ')[2]}.", code=code, param=param)
