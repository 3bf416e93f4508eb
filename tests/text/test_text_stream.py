from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import Tokenizer as Backend
from tokenizers import decoders, models, pre_tokenizers

from rhizome_text.text_stream import TextStream
from rhizome_text.tokenizer import Tokenizer


def _tokenizer() -> Tokenizer:
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    backend = Backend(models.BPE(vocab={c: i for i, c in enumerate(alphabet)}, merges=[]))
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    backend.decoder = decoders.ByteLevel()
    backend.add_special_tokens(["<eos>"])
    return Tokenizer(backend, {"eos_token": "<eos>"})


TOKENIZER = _tokenizer()


@given(
    text=st.text(alphabet="ab你 ", max_size=12),
    stops=st.lists(st.sampled_from(["b你", "a", "你 a"]), max_size=2),
    data=st.data(),
)
@settings(max_examples=200, deadline=None)
def test_text_and_count_do_not_depend_on_grouping(text: str, stops: list[str], data: st.DataObject) -> None:
    ids = TOKENIZER.encode(text)
    results = []
    for cuts in ([], sorted(data.draw(st.sets(st.integers(0, len(ids)))))):
        stream, shown, used, matched = TextStream(TOKENIZER, stops), "", 0, None
        for a, b in zip([0, *cuts], [*cuts, len(ids)], strict=True):
            chunk = stream.push(ids[a:b])
            shown, used, matched = shown + chunk.text, used + chunk.num_tokens, chunk.matched_stop
        results.append((shown + stream.finish().text, used, matched))
    assert results[0] == results[1]
    assert results[0][2] is not None or results[0][:2] == (text, len(ids))


def test_special_tokens_stay_out_of_the_text_unless_asked_for() -> None:
    ids = [*TOKENIZER.encode("hi"), TOKENIZER.eos_id or 0]
    assert TextStream(TOKENIZER).push(ids).text == "hi"
    assert TextStream(TOKENIZER, skip_special_tokens=False).push(ids).text == "hi<eos>"


def test_a_stop_string_at_the_very_end_is_found_while_it_arrives() -> None:
    stream = TextStream(TOKENIZER, ["xyz"])
    assert stream.push(TOKENIZER.encode("abcx")).text == "abc"
    chunk = stream.push(TOKENIZER.encode("yzabc"))
    assert (chunk.text, chunk.matched_stop, chunk.num_tokens) == ("", "xyz", 2)
    assert stream.finish().text == ""


def test_what_was_held_back_comes_at_the_end() -> None:
    stream = TextStream(TOKENIZER, ["xyz"])
    assert stream.push(TOKENIZER.encode("abcxy")).text == "abc"
    assert stream.finish().text == "xy"
