"""Small tokenizers of every make, each with the same control tokens."""

import json
from pathlib import Path

from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, trainers

from rhizome_testing.byte_tokenizer import byte_tokenizer_json

SPECIAL = ["<unk>", "<s>", "</s>", "<|im_start|>", "<|im_end|>"]
PLAIN = ["<think>", "</think>", "<tool_call>", "<table>"]
CORPUS = [
    "the quick brown fox jumps over the lazy dog im_end im_start think user assistant system é ü 你好 <|> </"
] * 3
DEMO = Path(__file__).parents[2] / "models" / "demo"


def _with_tokens(tokenizer: Tokenizer, **flags: bool) -> Tokenizer:
    flags = {"normalized": False, **flags}
    tokenizer.add_special_tokens([AddedToken(text, **flags) for text in SPECIAL])
    tokenizer.add_tokens([AddedToken(text, **{**flags, "normalized": False}) for text in PLAIN])
    return tokenizer


def _byte_level() -> Tokenizer:
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    tokenizer.train_from_iterator(CORPUS, trainers.BpeTrainer(vocab_size=400, initial_alphabet=alphabet))
    return _with_tokens(tokenizer)


def _sentencepiece(prepend_scheme: str | None, **flags: bool) -> Tokenizer:
    tokenizer = Tokenizer(models.BPE(unk_token="<unk>", byte_fallback=True, fuse_unk=True))
    if prepend_scheme is None:
        tokenizer.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    else:
        tokenizer.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme=prepend_scheme)
    trainer = trainers.BpeTrainer(
        vocab_size=700, special_tokens=["<unk>", "<s>", "</s>", *(f"<0x{byte:02X}>" for byte in range(256))]
    )
    tokenizer.train_from_iterator(CORPUS, trainer)
    spec = json.loads(tokenizer.to_str())
    spec["added_tokens"] = [token for token in spec["added_tokens"] if token["id"] < 3]
    return _with_tokens(Tokenizer.from_str(json.dumps(spec)), **flags)


def _unigram() -> Tokenizer:
    pieces = [(text, 0.0) for text in SPECIAL[:3]]
    pieces += [
        (text, -3.0) for text in ("▁the", "▁", "im", "end", "_", "|", "<", ">", "start", "<|im", "</s")
    ]
    pieces += [(chr(code), -9.0) for code in range(0x20, 0x7F) if chr(code) not in "_|<>"]
    tokenizer = Tokenizer(models.Unigram(pieces, unk_id=0))
    tokenizer.normalizer = normalizers.NFKC()
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace()
    return _with_tokens(tokenizer)


def _normalized() -> Tokenizer:
    tokenizer = Tokenizer(
        models.WordLevel({"<unk>": 0, "the": 1, "im": 2, "end": 3, "<": 4, "|": 5}, "<unk>")
    )
    tokenizer.normalizer = normalizers.Sequence([normalizers.NFKC(), normalizers.Lowercase()])
    tokenizer.pre_tokenizer = pre_tokenizers.Split(Regex(r"\w+|\s+|."), "isolated")
    return _with_tokens(tokenizer, normalized=True)


def _whole_words_in_the_vocabulary() -> Tokenizer:
    return _with_tokens(Tokenizer.from_str(json.dumps(byte_tokenizer_json(300))))


TOKENIZERS = {
    "byte-level": _byte_level(),
    "metaspace, first": _sentencepiece("first"),
    "metaspace, always": _sentencepiece("always"),
    "prepended": _sentencepiece(None),
    "stripping": _sentencepiece("first", lstrip=True, rstrip=True),
    "unigram": _unigram(),
    "normalized": _normalized(),
    "bytes": _whole_words_in_the_vocabulary(),
    "demo": _with_tokens(Tokenizer.from_file(str(DEMO / "tokenizer.json"))),
}
