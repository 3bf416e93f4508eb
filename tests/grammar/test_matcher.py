"""One request's place in its grammar: the end, resumed outputs, forced tokens, errors."""

import json

import pytest

from rhizome_engine.grammar.masks import fill_masks
from rhizome_grammar import compiler as compiler_module
from rhizome_grammar.compiler import GrammarCompiler, GrammarError
from rhizome_grammar.spec import Grammar
from rhizome_testing.byte_tokenizer import byte_tokenizer_json

SCHEMA = '{"type": "object", "properties": {"name": {"type": "string"}}, "required": ["name"]}'


def test_end_is_allowed_with_every_end_token_exactly_where_the_grammar_may_end(byte_speaker):
    matcher = byte_speaker.matcher(Grammar("choice", choices=("ab", "abc")))
    matcher.accept(ord("a"))
    assert not matcher.may_end and byte_speaker.allowed(matcher) == [ord("b")]
    matcher.accept(ord("b"))
    assert matcher.may_end and not matcher.is_finished
    assert byte_speaker.allowed(matcher) == [ord("c"), 257, 260]
    matcher.accept(ord("c"))
    assert matcher.may_end and matcher.is_finished
    assert byte_speaker.allowed(matcher) == [257, 260]
    assert matcher.forced_tokens(10) == []


@pytest.mark.parametrize("eos", [257, 260])
def test_an_end_token_finishes_where_the_grammar_may_end(byte_speaker, eos):
    matcher = byte_speaker.matcher(Grammar("regex", "a+"))
    matcher.accept_all([ord("a"), eos])
    assert matcher.is_finished and matcher.may_end
    with pytest.raises(GrammarError):
        matcher.accept(ord("a"))


def test_an_early_end_is_refused(byte_speaker):
    matcher = byte_speaker.matcher(Grammar("regex", "ab"))
    with pytest.raises(GrammarError, match="token 257 at output position 0 does not fit"):
        matcher.accept(257)


def test_the_demo_tokenizer_forces_the_canonical_tokens_up_to_where_they_are_certain(demo_speaker):
    matcher = demo_speaker.matcher(Grammar("json_schema", SCHEMA))
    forced = matcher.forced_tokens(100)
    canonical = demo_speaker.encode('{"name": "Ada"}')
    assert forced == canonical[: len(forced)]
    # The quote that opens the value is forced as text, but the token that it is part of depends on the value.
    assert demo_speaker.text(forced) == '{"name":'
    assert matcher.forced_tokens(2) == forced[:2]
    assert matcher.forced_tokens(0) == []


def test_after_an_unusual_split_forced_tokens_still_spell_the_text(demo_speaker):
    brace = next(t for t in range(1106) if demo_speaker.token_bytes(t) == b"{")
    matcher = demo_speaker.matcher(Grammar("json_schema", SCHEMA))
    matcher.accept(brace)
    assert demo_speaker.text(matcher.forced_tokens(100)) == '"name":'


def test_a_resumed_output_goes_on_as_if_it_had_not_been_interrupted(speaker):
    grammar = Grammar("json_schema", SCHEMA)
    whole = speaker.say(speaker.matcher(grammar), 5, force=True)
    for cut in range(len(whole) + 1):
        straight, resumed = speaker.matcher(grammar), speaker.matcher(grammar)
        for token_id in whole[:cut]:
            straight.accept(token_id)
        resumed.accept_all(whole[:cut])
        assert speaker.allowed(straight) == speaker.allowed(resumed)
        assert straight.forced_tokens(9) == resumed.forced_tokens(9)
        assert (straight.may_end, straight.is_finished) == (resumed.may_end, resumed.is_finished)


def test_a_resumed_output_that_does_not_fit_is_refused_with_its_place(byte_speaker):
    matcher = byte_speaker.matcher(Grammar("regex", "abc"))
    with pytest.raises(GrammarError, match=r"token 120 at output position 2 does not fit the grammar"):
        matcher.accept_all(list(b"abx"))


@pytest.mark.parametrize("token_id", [-1, 333, 10**12])
def test_an_id_outside_the_vocabulary_is_an_error_of_that_request(byte_speaker, token_id):
    matcher = byte_speaker.matcher(Grammar("regex", "abc"))
    with pytest.raises(GrammarError, match=f"{token_id} is no token of this model"):
        matcher.accept(token_id)


def test_a_failed_matcher_stays_failed_and_allows_nothing_while_others_go_on(byte_speaker):
    grammar = Grammar("regex", "abc")
    good, bad = byte_speaker.matcher(grammar), byte_speaker.matcher(grammar)
    with pytest.raises(GrammarError):
        bad.accept(ord("z"))
    for call in (lambda: bad.accept(ord("a")), lambda: bad.accept_all([]), lambda: bad.forced_tokens(4)):
        with pytest.raises(GrammarError, match="does not fit"):
            call()
    assert not bad.may_end and not bad.is_finished and "does not fit" in bad.error
    masks = fill_masks([(3, bad), (7, good)], byte_speaker.vocab_size)
    assert masks.rows.tolist() == [3, 7]
    assert not masks.bits[0].any()
    assert good.error is None and byte_speaker.allowed(good) == [ord("a")]


class TestWornOutLexer:
    """Requests of one grammar share lexer states, and the library limits their number."""

    # Each digit count is a state of its own, so texts of other lengths need other states.
    GRAMMAR = Grammar("regex", "a[0-9]{1,400}|b[0-9]{1,400}x")

    @pytest.fixture
    def compiler(self, monkeypatch):
        monkeypatch.setattr(compiler_module, "MAX_LEXER_STATES", 600)
        return GrammarCompiler(json.dumps(byte_tokenizer_json(320)), 320, [257])

    def test_one_request_that_fills_it_does_not_stop_another(self, compiler):
        compiled = compiler.compile(self.GRAMMAR).result(30)
        greedy, other = compiled.matcher(), compiled.matcher()
        other.accept_all(list(b"b12"))
        greedy.accept_all(list(b"a" + b"1" * 400))
        for _ in range(300):
            other.accept(ord("7"))
        assert compiled.is_worn_out
        assert other.error is None and other.forced_tokens(4) == []
        allowed = fill_masks([(0, other)], 320).bits[0].view("uint32")
        assert allowed[ord("x") // 32] >> (ord("x") % 32) & 1
        other.accept(ord("x"))
        assert other.is_finished

    def test_it_is_compiled_anew_for_the_next_request(self, compiler):
        first = compiler.compile(self.GRAMMAR).result(30)
        first.rebuild()
        second = compiler.compile(self.GRAMMAR)
        assert second.result(30) is not first
        assert compiler.compile(self.GRAMMAR) is second

    def test_a_request_that_fills_one_of_its_own_fails_with_a_reason(self, compiler):
        matcher = compiler.compile(Grammar("regex", "a[0-9]{1,2000}")).result(30).matcher()
        matcher.accept(ord("a"))
        accepted = 0
        while fill_masks([(0, matcher)], 320).bits.any():
            matcher.accept(ord("1"))
            accepted += 1
        assert 300 < accepted < 1500
        assert "too many states" in matcher.error
        with pytest.raises(GrammarError, match="too many states"):
            matcher.accept(ord("1"))
