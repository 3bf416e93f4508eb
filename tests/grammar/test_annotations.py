"""Keywords that bind nothing change nothing, and those that bind something are never taken for such."""

import json
from decimal import Decimal
from ipaddress import IPv4Network
from pathlib import Path

import pytest
from jsonschema import Draft202012Validator
from pydantic import BaseModel, Field, SecretStr

from rhizome_grammar.annotations import without_annotations
from rhizome_grammar.spec import Grammar


class Written(BaseModel):
    """What pydantic writes formats for that JSON Schema does not define."""

    path: Path
    data: bytes = Field(max_length=4)
    network: IPv4Network
    secret: SecretStr = Field(max_length=4)
    price: Decimal = Field(ge=0, le=9, max_digits=3)


# What MCP servers in TypeScript (zod), Rust (schemars) and Go declare their tools with.
ZOD = {
    "$schema": "https://json-schema.org/draft/2020-12/schema",
    "type": "object",
    "properties": {
        "format": {"type": "string", "enum": ["int32", "path"]},
        "sizes": {
            "type": "object",
            "propertyNames": {"type": "string"},
            "additionalProperties": {"type": "integer", "format": "int32", "minimum": 0},
            "maxProperties": 2,
        },
        "tags": {
            "type": "array",
            "uniqueItems": False,
            "maxItems": 2,
            "items": {"anyOf": [{"type": "string", "format": "byte", "maxLength": 3}, {"type": "null"}]},
        },
    },
    "required": ["format", "sizes", "tags"],
    "additionalProperties": False,
}


@pytest.mark.parametrize("schema", [ZOD, Written.model_json_schema()], ids=["zod", "pydantic"])
def test_what_generators_write_is_enforced(byte_speaker, schema):
    judge = Draft202012Validator(schema)
    judge.check_schema(schema)
    for seed in range(4):
        matcher = byte_speaker.matcher(Grammar("json_schema", json.dumps(schema)))
        text = byte_speaker.text(byte_speaker.say(matcher, seed, most=3000))
        assert matcher.may_end, "the walk was cut off"
        judge.validate(json.loads(text))


@pytest.mark.parametrize(
    "schema",
    [
        {"type": "string", "format": "date"},
        {"type": "string", "format": "uri-template"},
        {"type": "array", "uniqueItems": True},
        {"type": "object", "propertyNames": {"pattern": "^a"}},
        {"enum": [{"format": "path"}, {"uniqueItems": False}]},
        {"const": {"items": {"format": "path"}}},
        {"type": "object", "properties": {"format": {"type": "string"}}, "default": {"format": "x"}},
        {"type": "object", "properties": {"propertyNames": {}, "uniqueItems": {"type": "null"}}},
    ],
)
def test_what_binds_or_is_a_value_stays(schema):
    text = json.dumps(schema, indent=3)
    assert without_annotations(text) is text


def test_only_that_is_taken_out_and_the_order_stays():
    schema = {
        "z": 0,
        "properties": {"b": {"format": "int64", "x": 1.50}, "a": {"not": {"format": "path", "type": "null"}}},
        "$defs": {"ü": {"prefixItems": [{"uniqueItems": False}], "items": {"propertyNames": True}}},
        "default": [1e-7, "\ud800"],
    }
    expected = {
        "z": 0,
        "properties": {"b": {"x": 1.50}, "a": {"not": {"type": "null"}}},
        "$defs": {"ü": {"prefixItems": [{}], "items": {}}},
        "default": [1e-7, "\ud800"],
    }
    assert without_annotations(json.dumps(schema)) == json.dumps(expected)


def test_what_cannot_be_written_again_is_an_error():
    with pytest.raises(ValueError, match="not JSON compliant"):
        without_annotations('{"format": "x", "maximum": 1e999}')
    nested = '{"not":' * 100_000 + '{"format": "x"}' + "}" * 100_000
    with pytest.raises(ValueError, match="nested too deeply"):
        without_annotations(nested)
