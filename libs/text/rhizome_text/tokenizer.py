"""Text to token ids and back, from the files of a Hugging Face checkpoint."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path, PurePosixPath
from typing import Any

import tokenizers

from rhizome_text.chat_prompt import ChatPrompts
from rhizome_text.chat_template import ChatTemplate
from rhizome_text.token_bytes import decoding_rule
from rhizome_text.tokenizer_files import TEMPLATE_FOLDERS, read_tokenizer_files
from rhizome_text.word_encoder import word_encoder

_SPECIAL_NAMES = ("bos_token", "eos_token", "unk_token", "pad_token", "sep_token", "cls_token", "mask_token")

_TOKEN_FLAGS = ("lstrip", "rstrip", "normalized", "single_word", "special")


class TokenizerError(ValueError):
    """The tokenizer's files cannot be used; the message says why."""


class Tokenizer:
    """A checkpoint's tokenizer with its special tokens and its chat template.

    Safe to share between threads; `encode` lets other threads run meanwhile.

    Attributes:
        rule: how tokens become bytes; None when the decoder is not a plain map.
        special_tokens: text by role (`bos_token`, ...), those that the checkpoint names.
        special_ids: ids that never belong to visible text.
        longest_token_chars: no token stands for more characters of text than that.
        bytes_by_id: the bytes that each token adds in the middle of a text; empty for unknown ids.
        text_by_id: the same as text; None where that is no whole characters.
        vocab_size: ids of the tokenizer, added tokens included; the model may have logits for more.
    """

    def __init__(
        self,
        backend: tokenizers.Tokenizer,
        config: Mapping[str, Any],
        templates: Mapping[str, str] | None = None,
    ) -> None:
        self._backend = backend
        _add_tokens(backend, config)
        # A decoder's pickled state is its section of tokenizer.json; the whole file would take far longer.
        self.rule = decoding_rule(json.loads(backend.decoder.__getstate__()) if backend.decoder else None)
        self.special_tokens = _special_tokens(config)
        self.special_ids = frozenset(
            token_id for token_id, token in backend.get_added_tokens_decoder().items() if token.special
        )
        vocabulary = backend.get_vocab(with_added_tokens=True)
        self._known_ids = frozenset(vocabulary.values())
        self.longest_token_chars = max(map(len, vocabulary), default=0)
        self.vocab_size = max(self._known_ids, default=-1) + 1
        self.bytes_by_id = _BytesById(self._bytes_of)
        self.text_by_id = _TextById(self.bytes_by_id)
        self._template_sources = {**_templates(config), **(templates or {})}
        self._templates: dict[str, ChatTemplate] = {}
        self._chat_prompts: dict[str, ChatPrompts] = {}

    @classmethod
    def from_files(cls, files: Mapping[str, bytes]) -> Tokenizer:
        """Build from file contents by name, as `GetTokenizer` hands them out.

        Raises:
            TokenizerError: a file is missing or broken.
        """
        if "tokenizer.json" not in files:
            raise TokenizerError("tokenizer.json is missing")
        reading = "tokenizer.json"
        try:
            backend = tokenizers.Tokenizer.from_str(files[reading].decode())
            reading = "tokenizer_config.json"
            config = json.loads(files.get(reading, b"{}"))
            reading = "one of the tokenizer's files"
            return cls(backend, config, _template_files(files))
        except TokenizerError:
            raise
        except Exception as error:  # the tokenizers package raises plain Exception
            raise TokenizerError(f"{reading} cannot be read: {error}") from error

    @classmethod
    def from_directory(cls, directory: str | Path) -> Tokenizer:
        """Build from a checkpoint directory."""
        return cls.from_files(read_tokenizer_files(directory))

    @property
    def bos_id(self) -> int | None:
        """The begin-of-sequence token, where the checkpoint names one."""
        return self.token_id(self.special_tokens.get("bos_token"))

    @property
    def eos_id(self) -> int | None:
        """The end-of-sequence token, where the checkpoint names one."""
        return self.token_id(self.special_tokens.get("eos_token"))

    @property
    def template_source(self) -> str:
        """The sources of all chat templates; empty where the checkpoint has none."""
        return "\n".join(self._template_sources.values())

    def chat_template(self, *, tools: bool = False) -> ChatTemplate | None:
        """The template for conversations, None where the checkpoint has none.

        Some checkpoints have one of their own for conversations with `tools`.

        Raises:
            ChatTemplateError: the template does not compile.
        """
        name = "tool_use" if tools and "tool_use" in self._template_sources else "default"
        if name not in self._templates and name in self._template_sources:
            self._templates[name] = ChatTemplate(self._template_sources[name], **self.special_tokens)
        return self._templates.get(name)

    def chat_prompts(self, *, tools: bool = False) -> ChatPrompts | None:
        """Conversations to token ids, None where the checkpoint has no template.

        Raises:
            ChatTemplateError: the template does not compile.
        """
        template = self.chat_template(tools=tools)
        if template is None:
            return None
        if template.source not in self._chat_prompts:
            words = word_encoder(self._backend)
            self._chat_prompts[template.source] = ChatPrompts(self._backend, template, words)
        return self._chat_prompts[template.source]

    def token_id(self, token: str | None) -> int | None:
        """The id of a token as it is written in the vocabulary."""
        return None if token is None else self._backend.token_to_id(token)

    def encode(self, text: str, add_special_tokens: bool = False) -> list[int]:
        """Tokenise. Leave `add_special_tokens` off for rendered templates: they hold their own.

        Text that looks like a special token becomes that token; `chat_prompts` tells apart what a user typed.
        """
        # The batch of one computes no offsets, which are a third of the work.
        ids: list[int] = self._backend.encode_batch_fast([text], add_special_tokens=add_special_tokens)[0].ids
        return ids

    def decode(self, token_ids: Sequence[int], skip_special_tokens: bool = True) -> str:
        """The text of token ids; unknown ids count as nothing, broken UTF-8 as U+FFFD.

        Differs from the tokenizers package in one place: there, one broken byte turns its whole run of
        byte-fallback tokens into U+FFFD, here only itself; so that decoding all at once and bit by bit agree.
        """
        text = self._backend.decode(token_ids, skip_special_tokens=skip_special_tokens)
        if "\ufffd" in text and self.rule is not None and self.rule.byte_fallback:
            return self._decode_bytes(token_ids, skip_special_tokens)
        return text

    def is_text(self, token_id: int, skip_special_tokens: bool = True) -> bool:
        """Whether an id contributes to the visible text."""
        return token_id in self._known_ids and not (skip_special_tokens and token_id in self.special_ids)

    def token_text(self, token_id: int) -> str:
        """The token as it is written in the vocabulary; empty for unknown ids."""
        return self._backend.id_to_token(token_id) or ""

    def token_bytes(self, token_id: int) -> bytes:
        """The bytes that a token adds in the middle of a text; empty for unknown ids."""
        return self.bytes_by_id[token_id]

    def _bytes_of(self, token_id: int) -> bytes:
        if self.rule is not None:
            return self.rule.token_bytes(self.token_text(token_id))
        return self._backend.decode([token_id], skip_special_tokens=False).encode()

    def _decode_bytes(self, token_ids: Sequence[int], skip_special_tokens: bool) -> str:
        rule = self.rule
        assert rule is not None
        kept = [i for i in token_ids if self.is_text(i, skip_special_tokens)]
        text = b"".join(map(self.token_bytes, kept)).decode("utf-8", "replace")
        character, most = rule.strip_start
        for _ in range(most):
            text = text.removeprefix(character)
        return text


class _BytesById(dict[int, bytes]):
    """What tokens stand for, worked out when first asked for."""

    def __init__(self, find: Callable[[int], bytes]) -> None:
        super().__init__()
        self._find = find

    def __missing__(self, token_id: int) -> bytes:
        known = self[token_id] = self._find(token_id)
        return known


class _TextById(dict[int, str | None]):
    """Texts of tokens, worked out when first asked for."""

    def __init__(self, token_bytes: Mapping[int, bytes]) -> None:
        super().__init__()
        self._bytes = token_bytes

    def __missing__(self, token_id: int) -> str | None:
        try:
            text = self._bytes[token_id].decode()
        except UnicodeDecodeError:
            text = None
        self[token_id] = text
        return text


def _special_tokens(config: Mapping[str, Any]) -> dict[str, str]:
    """Special tokens by role; a token is a string or `{"content": ...}`."""
    tokens = {}
    for name in _SPECIAL_NAMES:
        token = config.get(name)
        if isinstance(token, Mapping):
            token = token.get("content")
        if isinstance(token, str):
            tokens[name] = token
    return tokens


def _add_tokens(backend: tokenizers.Tokenizer, config: Mapping[str, Any]) -> None:
    """Add what only `tokenizer_config.json` names, where it has the next free id.

    Raises:
        TokenizerError: a token has another id there than the tokenizer can give it.
    """
    entries = {int(token_id): token for token_id, token in config.get("added_tokens_decoder", {}).items()}
    known = backend.get_vocab(with_added_tokens=True)
    for token_id, entry in sorted(entries.items()):
        content = entry["content"]
        if content in known:
            continue
        flags = {name: bool(entry[name]) for name in _TOKEN_FLAGS if name in entry}
        token = tokenizers.AddedToken(content, **flags)
        if entry.get("special"):
            backend.add_special_tokens([token])
        else:
            backend.add_tokens([token])
        if backend.token_to_id(content) != token_id:
            raise TokenizerError(
                f"tokenizer_config.json gives {content!r} the id {token_id}, "
                f"but after tokenizer.json it can only be {backend.token_to_id(content)}"
            )


def _templates(config: Mapping[str, Any]) -> dict[str, str]:
    """Template sources of `tokenizer_config.json` by name."""
    configured = config.get("chat_template")
    if isinstance(configured, str):
        return {"default": configured}
    if isinstance(configured, list):
        return {entry["name"]: entry["template"] for entry in configured}
    return {}


def _template_files(files: Mapping[str, bytes]) -> dict[str, str]:
    """Template sources of files by name; `chat_template.jinja` is the default one."""
    named = {
        PurePosixPath(name).stem: content.decode()
        for name, content in files.items()
        if name.startswith(tuple(f"{folder}/" for folder in TEMPLATE_FOLDERS))
    }
    if "chat_template.jinja" in files:
        named["default"] = files["chat_template.jinja"].decode()
    return named
