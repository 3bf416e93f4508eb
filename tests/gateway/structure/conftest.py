"""Checkers over real tokenizers, and a model that speaks at random within what the engine would allow."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from rhizome.engine.v1 import generate_pb2
from rhizome_engine.core.translate import to_grammar
from rhizome_gateway.parsing.base import OutputParser
from rhizome_gateway.parsing.formats import TOOL_FORMATS
from rhizome_gateway.structure.checker import GrammarChecker
from rhizome_gateway.structure.tool_grammar import ToolCalls
from rhizome_gateway.structure.tool_spec import ToolSpec
from rhizome_testing import random_speaker
from rhizome_testing.random_speaker import Speaker

DEMO = Path(__file__).parents[3] / "models" / "demo"
VOCAB = 1152
EOS = (4, 1)
MARKERS = {
    "<think>": False,
    "</think>": False,
    "<tool_call>": False,
    "</tool_call>": False,
    "[TOOL_CALLS]": True,
    "[ARGS]": True,
    "[THINK]": True,
    "[/THINK]": True,
}
"""Added tokens of other checkpoints, and whether those call them special."""


@dataclass(frozen=True)
class Model:
    """A tokenizer on both sides."""

    speaker: Speaker
    checker: GrammarChecker

    def say(self, message: generate_pb2.Grammar, seed: int, *, most: int = 3000) -> str | None:
        """A text that the engine lets pass; None where it did not come to an end."""
        matcher = self.speaker.matcher(to_grammar(message))
        token_ids = self.speaker.say(matcher, seed, force=True, most=most)
        return self.speaker.text(token_ids) if matcher.may_end else None


def _model(directory: Path) -> Model:
    speaker = random_speaker.checkpoint_speaker(directory, VOCAB, EOS)
    return Model(speaker, GrammarChecker((directory / "tokenizer.json").read_bytes(), VOCAB, EOS))


@pytest.fixture(scope="session")
def plain() -> Model:
    """The bundled checkpoint, for which markers are text."""
    return _model(DEMO)


@pytest.fixture(scope="session")
def marked(tmp_path_factory: pytest.TempPathFactory) -> Model:
    """The bundled checkpoint with a token for each marker."""
    tokenizer = json.loads((DEMO / "tokenizer.json").read_bytes())
    for place, (marker, special) in enumerate(MARKERS.items()):
        flags = dict.fromkeys(("single_word", "lstrip", "rstrip", "normalized"), False)
        entry = {"id": 1106 + place, "content": marker, "special": special, **flags}
        tokenizer["added_tokens"].append(entry)
    directory = tmp_path_factory.mktemp("marked")
    (directory / "tokenizer.json").write_text(json.dumps(tokenizer))
    return _model(directory)


@pytest.fixture(params=["plain", "marked"])
def model(request: pytest.FixtureRequest) -> Model:
    return request.getfixturevalue(request.param)


def tool(
    name: str, parameters: dict[str, Any] | None, strict: bool | None = None, index: int = 0
) -> ToolSpec:
    return ToolSpec(name, parameters, strict, f"tools[{index}].function.parameters")


def calls_of(
    name: str, *tools: ToolSpec, required: bool = True, parallel: bool = True
) -> tuple[ToolCalls, Callable[[], OutputParser]]:
    """Calls in a format, and its parser."""
    format_ = TOOL_FORMATS[name]
    names = [each.name for each in tools]
    return ToolCalls(tools, format_, required, parallel), lambda: format_.parser(names, parallel=parallel)
