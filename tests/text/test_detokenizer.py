import json
import time
from collections.abc import Callable

import pytest
import tokenizers
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import decoders, models, pre_tokenizers

from rhizome_text.detokenizer import IncrementalDetokenizer
from rhizome_text.tokenizer import Tokenizer

EMOJI = "😀"
WORDS = ["a", "b", " the", "é", "你", "好", "!", "\n", "\ufffd", "<", ">", "  ", "Ġ", "▁"]


def _byte_level() -> Tokenizer:
    """Every byte is a token, and pieces that cut characters anywhere."""
    alphabet = _byte_characters()
    pieces = [bytes([b]) for b in range(256)]
    text = f"x{EMOJI}你好é the".encode()
    pieces += [text[i : i + n] for n in (2, 3, 5) for i in range(len(text) - n + 1)]
    vocab = {
        token: i for i, token in enumerate(dict.fromkeys("".join(alphabet[b] for b in p) for p in pieces))
    }
    backend = tokenizers.Tokenizer(models.BPE(vocab=vocab, merges=[]))
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    return _with_specials(backend)


def _byte_fallback() -> Tokenizer:
    vocab = {f"<0x{b:02X}>": b for b in range(256)}
    for word in ("▁", "▁▁", "▁the", "▁a", "b", "é", "你", "!", "▁x▁y", "<0x", "<0xZZ>"):
        vocab.setdefault(word, len(vocab))
    backend = tokenizers.Tokenizer(models.BPE(vocab=vocab, merges=[], byte_fallback=True))
    backend.decoder = decoders.Sequence(
        [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    )
    return _with_specials(backend)


def _gemma_like() -> Tokenizer:
    tokenizer = json.loads(_byte_fallback()._backend.to_str())
    tokenizer["decoder"]["decoders"].pop()
    return Tokenizer(tokenizers.Tokenizer.from_str(json.dumps(tokenizer)), {})


def _metaspace(scheme: str) -> Tokenizer:
    vocab = {w: i for i, w in enumerate(["▁", "▁▁", "▁the", "▁a", "b", "é", "你", "!", "▁x▁y"])}
    backend = tokenizers.Tokenizer(models.BPE(vocab=vocab, merges=[]))
    backend.decoder = decoders.Metaspace(prepend_scheme=scheme)
    return _with_specials(backend)


def _word_piece() -> Tokenizer:
    vocab = {w: i for i, w in enumerate(["the", "##re", "a", "##b", ".", ",", "##é", "你", "don", "'", "t"])}
    backend = tokenizers.Tokenizer(models.WordPiece(vocab=vocab, unk_token="the"))
    backend.decoder = decoders.WordPiece(prefix="##", cleanup=False)
    return _with_specials(backend)


def _with_specials(backend: tokenizers.Tokenizer) -> Tokenizer:
    backend.add_special_tokens(["<|begin|>", "<|end|>"])
    backend.add_tokens(["<think>", "<tool call>"])
    return Tokenizer(backend, {"bos_token": "<|begin|>", "eos_token": {"content": "<|end|>"}})


def _byte_characters() -> list[str]:
    visible = [*range(33, 127), *range(161, 173), *range(174, 256)]
    hidden = iter(range(256, 600))
    return [chr(b) if b in visible else chr(next(hidden)) for b in range(256)]


MAKERS: dict[str, Callable[[], Tokenizer]] = {
    "byte_level": _byte_level,
    "byte_fallback": _byte_fallback,
    "byte_fallback_without_strip": _gemma_like,
    "metaspace_always": lambda: _metaspace("always"),
    "metaspace_never": lambda: _metaspace("never"),
    "word_piece": _word_piece,
}
TOKENIZERS = {name: make() for name, make in MAKERS.items()}


@pytest.mark.parametrize("name", MAKERS)
def test_known_decoders_are_recognised(name: str) -> None:
    assert (TOKENIZERS[name].rule is None) == (name == "word_piece")


@pytest.mark.parametrize("name", MAKERS)
@settings(max_examples=300, deadline=None)
@given(data=st.data())
def test_pushes_add_up_to_the_decoding_of_all_ids(name: str, data: st.DataObject) -> None:
    tokenizer = TOKENIZERS[name]
    ids = data.draw(st.lists(st.integers(0, tokenizer.vocab_size + 2), max_size=40))
    cuts = sorted(data.draw(st.sets(st.integers(0, len(ids)), max_size=len(ids))))
    skip = data.draw(st.booleans())
    detokenizer = IncrementalDetokenizer(tokenizer, skip)
    pieces = [detokenizer.push(ids[a:b]) for a, b in zip([0, *cuts], [*cuts, len(ids)], strict=True)]
    shown = "".join(pieces) + detokenizer.finish()
    whole = tokenizer.decode(ids, skip_special_tokens=skip)
    assert whole.startswith(shown)
    assert whole[len(shown) :].strip("\ufffd") == ""
    assert len(whole) - len(shown) <= 1


@pytest.mark.parametrize("name", MAKERS)
@settings(max_examples=200, deadline=None)
@given(data=st.data())
def test_how_ids_are_grouped_does_not_matter(name: str, data: st.DataObject) -> None:
    tokenizer = TOKENIZERS[name]
    ids = data.draw(st.lists(st.integers(0, tokenizer.vocab_size - 1), max_size=30))
    together, singly = IncrementalDetokenizer(tokenizer), IncrementalDetokenizer(tokenizer)
    one = together.push(ids) + together.finish()
    assert "".join(singly.push([i]) for i in ids) + singly.finish() == one


@pytest.mark.parametrize("name", ["byte_level", "byte_fallback", "byte_fallback_without_strip"])
@given(text=st.text(alphabet=st.characters(exclude_categories=["Cs"]), max_size=20))
@settings(max_examples=200, deadline=None)
def test_valid_text_comes_out_in_whole_characters(name: str, text: str) -> None:
    tokenizer = TOKENIZERS[name]
    ids = [
        token
        for byte in ("x" + text).encode()
        if (
            token := tokenizer.token_id(
                f"<0x{byte:02X}>" if name != "byte_level" else _byte_characters()[byte]
            )
        )
        is not None
    ]
    detokenizer = IncrementalDetokenizer(tokenizer)
    pieces = [detokenizer.push([i]) for i in ids]
    assert "".join(pieces) == "x" + text
    assert all(piece in ("", character) for piece, character in zip(pieces[:1], "x", strict=True))
    assert max(map(len, pieces)) == 1


def test_one_broken_byte_does_not_break_its_neighbours() -> None:
    tokenizer = TOKENIZERS["byte_fallback"]
    ids = [*"你".encode(), 0xFF, *"好".encode()]
    assert tokenizer.decode(ids) == "你\ufffd好"
    assert IncrementalDetokenizer(tokenizer).push(ids) == "你\ufffd好"


def test_an_answer_cut_inside_a_character_ends_before_it() -> None:
    for name in ("byte_level", "byte_fallback"):
        tokenizer = TOKENIZERS[name]
        spell = "<0x{:02X}>".format if name == "byte_fallback" else _byte_characters().__getitem__
        ids = [tokenizer.token_id(spell(b)) for b in f"a{EMOJI}".encode()]
        detokenizer = IncrementalDetokenizer(tokenizer)
        assert detokenizer.push([i for i in ids[:-1] if i is not None]) + detokenizer.finish() == "a"


@pytest.mark.parametrize("name", MAKERS)
def test_cost_per_token_does_not_grow(name: str) -> None:
    tokenizer = TOKENIZERS[name]
    # Broken bytes for ever are the worst case: no character ever ends.
    worst = tokenizer.token_id("<0xFF>") or tokenizer.token_id("ÿ") or 0
    detokenizer = IncrementalDetokenizer(tokenizer)

    def spend(tokens: int) -> float:
        start = time.process_time()
        for _ in range(tokens):
            detokenizer.push([worst])
        return time.process_time() - start

    spend(100)
    early = spend(2_000)
    spend(20_000)
    assert spend(2_000) < 5 * early + 0.05


def test_token_bytes_are_the_bytes_inside_a_text() -> None:
    tokenizer = TOKENIZERS["byte_level"]
    ids = tokenizer.encode(f"the {EMOJI} 你")
    assert b"".join(map(tokenizer.token_bytes, ids)) == f"the {EMOJI} 你".encode()
    assert tokenizer.token_bytes(10_000) == b""
