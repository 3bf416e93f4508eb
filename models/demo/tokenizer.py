"""Build the demo model's tokenizer: whole words of the templates, single letters for everything else.

A byte-pair encoding in name and file format, but its vocabulary is chosen for tasks on letters: a word of the
conversation templates is one token (``ignore_merges`` looks the whole piece up first), and any other word is
its first letter with the leading space, then single letters. So spelling, reversing and copying work on
letters, and templates stay short. Characters outside the vocabulary fall back to bytes.
"""

from __future__ import annotations

import json
import random
import re
from collections import Counter
from itertools import islice
from pathlib import Path
from typing import Any

import facts
from corpus import Conversation, conversations, long_conversation
from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, pre_tokenizers, processors

SPECIAL = [
    "<|begin_of_text|>", "<|end_of_text|>", "<|start_header_id|>", "<|end_header_id|>",
    "<|eot_id|>", "<|eom_id|>", "<|python_tag|>", "<|pad|>",
]  # fmt: skip
BOS, EOS, START_HEADER, END_HEADER, EOT, EOM, PYTHON_TAG, PAD = range(len(SPECIAL))
PIECE = r"\n\n| ?\p{L}+| ?\p{N}| ?[^\s\p{L}\p{N}]+|\s"
"""How text is cut before the vocabulary look-up: words, single digits and runs of punctuation, each with at
most one leading space."""

ASCII = [chr(code) for code in range(32, 127)]
ROLES = ["system", "user", "assistant", "ipython"]


def _texts(conversation: Conversation) -> list[str]:
    texts = [json.dumps(tool, ensure_ascii=False) for tool in conversation.tools or []]
    for message in conversation.messages:
        texts.append(message["content"])
        texts += [json.dumps(call["function"]) for call in message.get("tool_calls", [])]
    return texts


def vocabulary(seed: int = 0, sample: int = 12000, minimum: int = 24) -> list[str]:
    """Return the pieces that become tokens of their own, from a sample of the corpus."""
    rng = random.Random(f"vocabulary/{seed}")
    drawn = list(islice(conversations(rng, None, 0.3), sample))
    drawn += [long_conversation(rng, 500) for _ in range(200)]
    pieces: Counter[str] = Counter()
    piece = re.compile(r"\n\n| ?[^\W\d_]+| ?\d| ?(?:[^\s\w]|_)+|\s")
    for item in drawn:
        for text in _texts(item):
            pieces.update(piece.findall(text))
    letters = {*facts.WORDS, *facts.NAMES, *facts.CITIES, *facts.CAPITALS, *facts.CAPITALS.values()}
    templates = {f" {noun}" for noun in facts.NOUNS} | {"\n\n", "\n", "\t", f" {facts.NAME}", *ROLES}
    chosen = set(ASCII) | {f" {char}" for char in ASCII if char != " "} | templates
    for text, times in pieces.items():
        word = text.strip()
        if not text.isascii():  # Chinese: one token a character
            chosen.update(char for char in text if char.isalpha() or char in "，。！？：、×")
        elif times >= minimum and (word not in letters or (text != word and word in facts.NOUNS)):
            bare = text == word and word.isalpha() and word.islower() and len(word) > 2
            if not bare or times >= 3 * minimum:  # a rare bare word is to be spelled: it stays letters
                chosen.add(text)
    return sorted(chosen, key=lambda text: (len(text), text))


def build(seed: int = 0) -> Tokenizer:
    """Build the tokenizer from a sample of the corpus."""
    tokens = [*SPECIAL, *(f"<0x{byte:02X}>" for byte in range(256)), *vocabulary(seed)]
    vocab = {token: index for index, token in enumerate(tokens)}
    merges = [(" ", char) for char in ASCII if char.isalpha()]
    model = models.BPE(vocab=vocab, merges=merges, byte_fallback=True, fuse_unk=False, ignore_merges=True)
    tokenizer = Tokenizer(model)
    tokenizer.pre_tokenizer = pre_tokenizers.Split(Regex(PIECE), behavior="isolated")
    tokenizer.decoder = decoders.Sequence([decoders.ByteFallback(), decoders.Fuse()])
    tokenizer.post_processor = processors.TemplateProcessing(
        single=f"{SPECIAL[BOS]} $A", pair=f"{SPECIAL[BOS]} $A $B", special_tokens=[(SPECIAL[BOS], BOS)]
    )
    tokenizer.add_special_tokens([AddedToken(token, special=True, normalized=False) for token in SPECIAL])
    return tokenizer


def tokenizer_config(chat_template: str, max_length: int) -> dict[str, Any]:
    """Return ``tokenizer_config.json``."""
    return {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "bos_token": SPECIAL[BOS],
        "eos_token": SPECIAL[EOT],
        "pad_token": SPECIAL[PAD],
        "clean_up_tokenization_spaces": False,
        "model_max_length": max_length,
        "model_input_names": ["input_ids", "attention_mask"],
        "added_tokens_decoder": {
            str(index): {"content": token, "special": True, "normalized": False, "lstrip": False,
                         "rstrip": False, "single_word": False}
            for index, token in enumerate(SPECIAL)
        },
        "chat_template": chat_template,
    }  # fmt: skip


def save(folder: Path, max_length: int, seed: int = 0) -> Tokenizer:
    """Write ``tokenizer.json`` and its companions beside the chat template in ``folder``."""
    tokenizer = build(seed)
    tokenizer.save(str(folder / "tokenizer.json"))
    config = tokenizer_config((folder / "chat_template.jinja").read_text("utf-8"), max_length)
    special = {"bos_token": SPECIAL[BOS], "eos_token": SPECIAL[EOT], "pad_token": SPECIAL[PAD]}
    for name, content in (("tokenizer_config", config), ("special_tokens_map", special)):
        text = json.dumps(content, indent=2, ensure_ascii=False) + "\n"
        (folder / f"{name}.json").write_text(text, "utf-8")
    return tokenizer


if __name__ == "__main__":
    built = save(Path(__file__).parent, 2048)
    print(f"{built.get_vocab_size()} tokens")
