"""A tokenizer of one token per byte, so that a test can read token ids by eye: id = byte value.

It is a byte-level BPE without merges, in the `tokenizer.json` format of the `tokenizers` library, with Llama
3's special tokens from id 256 on and a chat template in Llama 3's style.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

SPECIAL_TOKENS = {
    "<|begin_of_text|>": 256,
    "<|end_of_text|>": 257,
    "<|start_header_id|>": 258,
    "<|end_header_id|>": 259,
    "<|eot_id|>": 260,
}
CHAT_TEMPLATE = (
    "{{ bos_token }}"
    "{% for message in messages %}"
    "<|start_header_id|>{{ message['role'] }}<|end_header_id|>\n\n{{ message['content'] | trim }}<|eot_id|>"
    "{% endfor %}"
    "{% if add_generation_prompt %}<|start_header_id|>assistant<|end_header_id|>\n\n{% endif %}"
)


def byte_characters() -> dict[int, str]:
    """Map each byte to the printable character that stands for it in byte-level BPE (GPT-2's table)."""
    printable = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    table = {byte: chr(byte) for byte in printable}
    others = (byte for byte in range(256) if byte not in table)
    table.update({byte: chr(256 + index) for index, byte in enumerate(others)})
    return table


def byte_tokenizer_json(vocab_size: int) -> dict[str, Any]:
    """Return `tokenizer.json`: bytes 0 to 255, the special tokens, and filler tokens up to `vocab_size`.

    Raises:
        ValueError: `vocab_size` is too small for the bytes and the special tokens.
    """
    needed = 256 + len(SPECIAL_TOKENS)
    if vocab_size < needed:
        raise ValueError(
            f"vocab_size must be at least {needed} for bytes and special tokens, not {vocab_size}"
        )
    vocab = {character: byte for byte, character in byte_characters().items()}
    # A random model draws every id: each must decode to something.
    vocab.update({f"<{token_id}>": token_id for token_id in range(needed, vocab_size)})
    byte_level = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": False}
    flags = {"single_word": False, "lstrip": False, "rstrip": False, "normalized": False}
    return {
        "version": "1.0",
        "truncation": None,
        "padding": None,
        "added_tokens": [
            {"id": token_id, "content": content, "special": True, **flags}
            for content, token_id in SPECIAL_TOKENS.items()
        ],
        "normalizer": None,
        "pre_tokenizer": byte_level,
        "post_processor": None,
        "decoder": byte_level,
        "model": {
            "type": "BPE",
            "dropout": None,
            "unk_token": None,
            "continuing_subword_prefix": None,
            "end_of_word_suffix": None,
            "fuse_unk": False,
            "byte_fallback": False,
            "vocab": dict(sorted({**vocab, **SPECIAL_TOKENS}.items(), key=lambda item: item[1])),
            "merges": [],
        },
    }


def write_byte_tokenizer(directory: Path, vocab_size: int) -> None:
    """Write `tokenizer.json` and `tokenizer_config.json` into `directory`."""
    tokenizer_config = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "bos_token": "<|begin_of_text|>",
        "eos_token": "<|eot_id|>",
        "chat_template": CHAT_TEMPLATE,
        "clean_up_tokenization_spaces": False,
    }
    for filename, value in (
        ("tokenizer.json", byte_tokenizer_json(vocab_size)),
        ("tokenizer_config.json", tokenizer_config),
    ):
        (directory / filename).write_text(json.dumps(value, ensure_ascii=False) + "\n", encoding="utf-8")
