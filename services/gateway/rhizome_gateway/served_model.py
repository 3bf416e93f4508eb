"""A model that can be asked: what the engine said of it, and how to write to it and read from it."""

from __future__ import annotations

import hashlib
import logging
from collections.abc import Collection, Mapping
from dataclasses import dataclass, field
from typing import Any

import orjson

from rhizome.engine.v1.engine_service_pb2 import GetModelInfoResponse
from rhizome_gateway import __version__
from rhizome_gateway.parsing.detect import AUTO, choose_formats
from rhizome_gateway.parsing.formats import OutputFormats
from rhizome_gateway.structure.checker import GrammarChecker
from rhizome_gateway.tokenization.long_texts import LongTexts
from rhizome_text.tokenizer import Tokenizer

_log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class TextModel:
    """What a tokenizer's files make; costs a second, so it outlives an engine's restart.

    Attributes:
        tokenizer: text to ids and back, with the chat templates.
        formats: how the model writes tool calls and thinking.
        special_markers: ids of the special tokens that a parser may look for, by their text.
        tokenizer_json: the file, for grammars.
    """

    tokenizer: Tokenizer
    formats: OutputFormats
    special_markers: Mapping[str, int]
    tokenizer_json: bytes

    @classmethod
    def from_files(
        cls, files: Mapping[str, bytes], *, tool_parser: str = AUTO, reasoning_parser: str = AUTO
    ) -> TextModel:
        """Build from files by name, as `GetTokenizer` hands them out; takes long.

        Raises:
            TokenizerError: a file is missing or broken.
            UnknownFormatError: a parser's name is none.
        """
        tokenizer = Tokenizer.from_files(files)
        config: dict[str, Any] = orjson.loads(files.get("tokenizer_config.json", b"{}"))
        formats = choose_formats(
            tokenizer.template_source,
            special_tokens=_texts(tokenizer, tokenizer.special_ids),
            response_template=config.get("response_template"),
            tool_parser=tool_parser,
            reasoning_parser=reasoning_parser,
        )
        _log.info(
            "tool calls are read as %s, thinking as %s",
            formats.tools.name if formats.tools else "text",
            f"{formats.reasoning.opening} … {formats.reasoning.closing}" if formats.reasoning else "text",
        )
        markers = {marker: tokenizer.token_id(marker) for marker in formats.visible_markers}
        special = {text: i for text, i in markers.items() if i is not None and i in tokenizer.special_ids}
        return cls(tokenizer, formats, special, files["tokenizer.json"])


@dataclass(frozen=True)
class ServedModel:
    """A model that can be asked.

    Attributes:
        info: what the engine said.
        text: how to write to it and read from it.
        grammars: compiles what its answers must conform to.
        long_texts: where its tokenizer works on what takes long.
        fingerprint: changes with whatever may change the text of a seeded answer.
    """

    info: GetModelInfoResponse
    text: TextModel
    grammars: GrammarChecker = field(init=False)
    long_texts: LongTexts = field(init=False, default_factory=LongTexts)
    fingerprint: str = field(init=False)

    def __post_init__(self) -> None:
        """Derive the rest."""
        info = self.info
        parts = (
            __version__,
            info.version,
            info.model,
            info.architecture,
            info.dtype,
            info.attention_backend,
            info.tokenizer_sha256,
        )
        digest = hashlib.sha256("\0".join(parts).encode()).hexdigest()
        object.__setattr__(self, "fingerprint", f"fp_{digest[:10]}")
        # Nothing is built before the first grammar.
        checker = GrammarChecker(
            self.text.tokenizer_json, info.vocab_size, list(info.eos_token_ids) or [self._end_of_text()]
        )
        object.__setattr__(self, "grammars", checker)

    @property
    def tokenizer(self) -> Tokenizer:
        """The engine's tokenizer."""
        return self.text.tokenizer

    def _end_of_text(self) -> int:
        """A token that ends answers, where the engine names none."""
        eos = self.text.tokenizer.eos_id
        return self.info.vocab_size - 1 if eos is None else eos


def _texts(tokenizer: Tokenizer, token_ids: Collection[int]) -> list[str]:
    return [tokenizer.token_text(token_id) for token_id in token_ids]
