"""The fields that bind the form of an answer: by OpenAI's name and ours, and by those of other servers.

Clients written for vLLM, SGLang or llama.cpp send these names. Ignoring one would give them free text where
they asked for JSON, and they would find out only when it does not parse.
"""

from __future__ import annotations

from typing import Self

from pydantic import Field, model_validator

from rhizome_gateway.schema.fields import Fields, refuse
from rhizome_gateway.structure.schema import ResponseFormat, SchemaOrText, StructuredOutputs

OTHER_NAMES = {
    "guided_json": "json",
    "guided_regex": "regex",
    "guided_choice": "choice",
    "guided_grammar": "grammar",
    "json_schema": "json",
    "regex": "regex",
    "ebnf": "grammar",
    "grammar": "grammar",
}
"""Names of other servers, and what of `structured_outputs` each means."""


class FormFields(Fields):
    """What the whole answer must match; at most one of these fields."""

    response_format: ResponseFormat | None = None
    structured_outputs: StructuredOutputs | None = None
    guided_json: SchemaOrText = Field(None, description="structured_outputs.json, as vLLM named it")
    guided_regex: str | None = Field(None, description="structured_outputs.regex, as vLLM named it")
    guided_choice: list[str] | None = Field(None, description="structured_outputs.choice, as vLLM named it")
    guided_grammar: str | None = Field(None, description="structured_outputs.grammar, as vLLM named it")
    json_schema: SchemaOrText = Field(
        None, description="structured_outputs.json, as SGLang and llama.cpp name it"
    )
    regex: str | None = Field(None, description="structured_outputs.regex, as SGLang names it")
    ebnf: str | None = Field(None, description="structured_outputs.grammar, as SGLang names it")
    grammar: str | None = Field(None, description="structured_outputs.grammar, as llama.cpp names it")

    @model_validator(mode="after")
    def _is_bound_once(self) -> Self:
        if self.model_fields_set.isdisjoint(OTHER_NAMES):  # as in nearly every request
            return self
        names = [name for name in OTHER_NAMES if getattr(self, name) not in (None, "")]
        if not names:
            return self
        if len(names) > 1 or self.structured_outputs is not None:
            raise refuse("invalid_value", f"{names[-1]} cannot bind the answer beside another such field.")
        name = names[0]
        wanted = StructuredOutputs.model_validate({OTHER_NAMES[name]: getattr(self, name)})
        self.structured_outputs = wanted.sent_as(name)
        return self
