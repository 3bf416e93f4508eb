"""Tokenizer layouts of real checkpoints."""

import json

import pytest
from tokenizers import AddedToken, Tokenizer, decoders, models, normalizers, pre_tokenizers, trainers

from rhizome_grammar.compiler import GrammarCompiler, GrammarError
from rhizome_grammar.spec import Grammar
from rhizome_testing.byte_tokenizer import byte_tokenizer_json
from rhizome_testing.random_speaker import Speaker
from rhizome_text.tokenizer import Tokenizer as RhizomeTokenizer

TEXTS = ['{"name": "Ada Lovelace", "city": "Zürich"}', "the name of the city is Paris", "1815 and 1852"] * 4
SPECIALS = ["<unk>", "<s>", "</s>"]


def sentencepiece(decoder) -> Tokenizer:
    """Spaces as a mark, and bytes for what the vocabulary lacks."""
    pieces = SPECIALS + [f"<0x{byte:02X}>" for byte in range(256)]
    words = [
        "▁",
        *'abcdefghijklmnopqrstuvwxyzA{}":,1825',
        "na",
        "me",
        "name",
        "▁name",
        '{"',
        '":',
        "▁1",
        "18",
    ]
    vocab = {piece: index for index, piece in enumerate([*pieces, *words])}
    merges = [
        ("n", "a"),
        ("m", "e"),
        ("na", "me"),
        ("▁", "name"),
        ("{", '"'),
        ('"', ":"),
        ("▁", "1"),
        ("1", "8"),
    ]
    tokenizer = Tokenizer(models.BPE(vocab, merges, unk_token="<unk>", fuse_unk=True, byte_fallback=True))
    tokenizer.normalizer = normalizers.Replace(" ", "▁")
    tokenizer.decoder = decoder
    tokenizer.add_special_tokens([AddedToken(text, special=True) for text in SPECIALS])
    return tokenizer


def byte_level() -> Tokenizer:
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.train_from_iterator(
        TEXTS,
        trainers.BpeTrainer(
            vocab_size=400,
            special_tokens=SPECIALS,
            initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
            show_progress=False,
        ),
    )
    return tokenizer


LLAMA_2 = decoders.Sequence(
    [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
)
GEMMA = decoders.Sequence([decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse()])
LAYOUTS = {
    "byte_level": byte_level,
    "llama_2": lambda: sentencepiece(LLAMA_2),
    "gemma": lambda: sentencepiece(GEMMA),
    "metaspace": lambda: sentencepiece(decoders.Metaspace()),
}
SCHEMA = """{
    "type": "object",
    "properties": {"name": {"type": "string", "maxLength": 8}, "year": {"type": "integer"}},
    "required": ["name", "year"],
    "additionalProperties": false
}"""


@pytest.mark.parametrize("force", [False, True], ids=["sampled", "forced"])
@pytest.mark.parametrize("layout", LAYOUTS)
def test_outputs_conform_with(layout, force):
    backend = LAYOUTS[layout]()
    text = backend.to_str()
    tokenizer = RhizomeTokenizer.from_files({"tokenizer.json": text.encode()})
    vocab_size = backend.get_vocab_size() + 7

    def token_bytes(token_id):
        token = backend.id_to_token(token_id)
        if layout == "metaspace":  # rhizome_text leaves this decoder to the tokenizers package
            return (
                bytes([int(token[3:5], 16)]) if token.startswith("<0x") else token.replace("▁", " ").encode()
            )
        return tokenizer.token_bytes(token_id)

    compiler = GrammarCompiler(text, vocab_size, [2])
    speaker = Speaker(compiler, vocab_size, (2,), token_bytes, tokenizer.encode)
    for seed in range(5):
        matcher = speaker.matcher(Grammar("json_schema", SCHEMA))
        value = json.loads(speaker.text(speaker.say(matcher, seed, force=force)))
        assert list(value) == ["name", "year"] and type(value["year"]) is int
    # Characters that no token stands for are spelled by bytes.
    matcher = speaker.matcher(Grammar("regex", "語 é"))
    assert speaker.text(speaker.say(matcher, 0, force=force)) == "語 é"


@pytest.mark.parametrize(
    ("tokenizer_json", "vocab_size", "eos", "message"),
    [
        (json.dumps(byte_tokenizer_json(320)), 300, [257], "vocab size too small; 300 vs 320"),
        (json.dumps(byte_tokenizer_json(320)), 320, [999], "999 is out of range"),
        ("/etc/hostname", 320, [1], "no JSON object"),
        ('{"model": 3}', 320, [1], "cannot be used with this model's tokenizer"),
    ],
)
def test_an_unusable_tokenizer_fails_each_grammar_with_the_reason(tokenizer_json, vocab_size, eos, message):
    compiler = GrammarCompiler(tokenizer_json, vocab_size, eos)
    for regex in ("a", "b"):
        with pytest.raises(GrammarError, match=message):
            compiler.compile(Grammar("regex", regex)).result(30)


def test_without_an_end_token_there_is_no_compiler():
    with pytest.raises(ValueError, match="eos_token_ids must not be empty"):
        GrammarCompiler("{}", 320, [])
