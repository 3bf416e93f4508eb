import codecs
import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from rhizome.engine.v1.generate_pb2 import RankedToken, TokenLogprob
from rhizome_gateway.generation.events import Begun, PromptScored, Text
from rhizome_gateway.openai.completions.logprobs import logprobs_object
from rhizome_gateway.openai.completions.shown import ShownChoice
from rhizome_gateway.tokenization.inputs import ModelInput
from rhizome_gateway.tokenization.spelling import Spelling
from rhizome_testing.talking_engine import TalkingEngine
from rhizome_text.tokenizer import Tokenizer


@given(st.lists(st.lists(st.floats(-20, 0, width=32), max_size=4), min_size=1, max_size=6))
def test_the_mean_log_probability_ranks(tokenizer: Tokenizer, answers: list[list[float]]) -> None:
    for logprobs in answers:
        shown = shown_choice(tokenizer, b"", echo=None)
        for value in logprobs:
            shown.collect(Text("a", [(97, TokenLogprob(logprob=value))]))
        assert shown.mean_logprob == pytest.approx(sum(logprobs) / len(logprobs) if logprobs else 0.0)


@pytest.fixture(scope="module")
def tokenizer() -> Tokenizer:
    return Tokenizer.from_files(TalkingEngine().files)


def shown_choice(tokenizer: Tokenizer, prompt: bytes, *, echo: str | None) -> ShownChoice:
    ids = list(prompt)
    return ShownChoice(
        tokenizer,
        Spelling(tokenizer),
        ModelInput(ids, range(len(ids)), False),
        echo=echo,
        scored=True,
        hidden_ids=tokenizer.special_ids,
    )


def score(token_id: int) -> TokenLogprob:
    return TokenLogprob(logprob=-1, top=[RankedToken(token_id=token_id, logprob=-1)])


@given(st.binary(min_size=1, max_size=12) | st.text(min_size=1, max_size=6).map(str.encode), st.data())
def test_offsets_point_at_the_tokens_however_they_come(
    tokenizer: Tokenizer, raw: bytes, data: st.DataObject
) -> None:
    """Each begins where the text of all bytes before it ends, however many of them are the prompt's."""
    prompt_length = data.draw(st.integers(1, len(raw)))
    shown = shown_choice(tokenizer, raw[:prompt_length], echo="")
    shown.collect(Begun())
    place = 1
    while place < len(raw):
        end = data.draw(st.integers(place + 1, prompt_length if place < prompt_length else len(raw)))
        if place < prompt_length:
            shown.collect(PromptScored([score(i) for i in raw[place:end]]))
        else:
            shown.collect(Text("", [(i, score(i)) for i in raw[place:end]]))
        place = end
    found = json.loads(logprobs_object([piece.logprobs for piece in shown.pieces if piece.logprobs]))
    decoder = codecs.getincrementaldecoder("utf-8")("replace")
    expected, length = [], 0
    for byte in raw:
        expected.append(length)
        length += len(decoder.decode(bytes([byte])))
    assert found["text_offset"] == expected
    assert found["token_logprobs"] == [None] + [-1.0] * (len(raw) - 1)
