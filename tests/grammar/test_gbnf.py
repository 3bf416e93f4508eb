"""Grammars in GBNF: what they accept once they are Lark, against a matcher that tries everything."""

from __future__ import annotations

import contextlib
import itertools
import json
import time

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from rhizome_grammar.errors import GrammarError
from rhizome_grammar.gbnf import is_gbnf
from rhizome_grammar.gbnf_to_lark import gbnf_to_lark
from rhizome_grammar.spec import MAX_BYTES, Grammar

JSON = r"""
# what llama.cpp's users paste most
root   ::= object
value  ::= object | array | string | number | ("true" | "false" | "null") ws
object ::=
  "{" ws (
            string ":" ws value
    ("," ws string ":" ws value)*
  )? "}" ws
array  ::= "[" ws ( value ("," ws value)* )? "]" ws
string ::= "\"" ( [^"\\\x7F\x00-\x1F] | "\\" (["\\bfnrt] | "u" [0-9a-fA-F]{4}) )* "\"" ws
number ::= ("-"? ([0-9] | [1-9] [0-9]{0,15})) ("." [0-9]+)? ([eE] [-+]? [0-9] [1-9]{0,15})? ws
ws ::= | " " | "\n" [ \t]{0,20}
"""
SQL = """
    root ::= select_statement
    select_statement ::= "SELECT " column " from " table " where " condition
    column ::= "col_1 " | "col_2 "
    table ::= "table_1 " | "table_2 "
    condition ::= column "= " number
    number ::= "1 " | "2 "
"""
SUMS = 'root ::= term ("+" term)*\nterm ::= [0-9]{1,3} | "(" root ")"'


def accepts(speaker, grammar: str, text: str) -> bool:
    matcher = speaker.matcher(Grammar("lark", gbnf_to_lark(grammar)))
    try:
        matcher.accept_all(list(text.encode()))
    except GrammarError:
        return False
    return bool(matcher.may_end)


@pytest.mark.parametrize(
    ("grammar", "texts", "others"),
    [
        (JSON, ['{"a": [1, -2.5e1, {"b": null}]}', "{}", '{"é\\n": "x\\u00e9"}'], ["[]", '{"a": 01}', "{,}"]),
        (SQL, ["SELECT col_1  from table_2  where col_2 = 1 "], ["SELECT col_1", "SELECT col_3  from"]),
        (SUMS, ["1", "(1+22)+3", "((7))"], ["1+", "(1", "1234", ")"]),
        ('root ::= "(" root ")" root | ""', ["", "()", "(())()"], ["(", "())"]),
        (
            r'root ::= [^a-c\]-] . "\x41\u00e9\U0001F600\t\"" [-+]',
            ['d\nAé😀\t"-', '^xAé😀\t"+'],
            ['axAé😀\t"-'],
        ),
        ('root ::= a-b{2}\na-b ::= "x" |\n "y"', ["xy", "yy"], ["x", "xyx"]),
        ('root ::= "a"{2,} "b"{0,3}', ["aa", "aaabbb"], ["a", "aabbbb"]),
        ('root ::= ([a-z]+ "-")* [a-z]+ # a comment\n', ["a", "ab-c-d"], ["-", "a-"]),
        (
            r'root ::= "\a\b\e\f\v\0\"\\" [\a\b\e\f\v\0\]\-\^]{2}',
            ['\a\b\x1b\f\v\0"\\\0^', '\a\b\x1b\f\v\0"\\\x1b]'],
            ['abefv0"\\\0^', '\a\b\x1b\f\v\0"\\ee'],
        ),
        ('root ::= "a"{0} "b" "c"{0,0}', ["b"], ["ab", "bc", ""]),
        ('root ::= "(" root ")" ("x" | root){0} | "a"', ["a", "(a)"], ["(a)x", "(a)a"]),
        ('root ::= "a"{0003}', ["aaa"], ["aa"]),
        ('root ::= "<[5]>" "<[1,2]>" [<] "[1]>"', ["<[5]><[1,2]><[1]>"], ["<[6]><[1,2]><[1]>"]),
        ("root ::= " + "(" * 28 + "[a-z]" + ")*" * 28, ["ab"], ["A"]),
    ],
)
def test_texts_of_a_grammar(byte_speaker, grammar, texts, others):
    assert is_gbnf(grammar)
    assert [text for text in texts if not accepts(byte_speaker, grammar, text)] == []
    assert [text for text in others if accepts(byte_speaker, grammar, text)] == []


LINES = 'root ::= (side "=" side "\\n")+\nside ::= "(" side ")" ws | "a" ws\nws ::= '
ENDED = 'root ::= (side "=" side line)+\nside ::= "(" side ")" | "a"\nline ::= '


@pytest.mark.parametrize(
    ("grammar", "text", "comes"),
    [
        (LINES + "[ \\t\\n]*", "a=(a)\n", False),
        (LINES + "[ \\t]*", "a=(a) \na=a\n", True),
        (ENDED + '[ \\t\\n]* "\\n"', "a=(a) \n\na=a\n", True),
    ],
)
def test_a_loop_before_what_it_may_swallow_and_how_to_write_it(byte_speaker, grammar, text, comes):
    """As the documents say it."""
    assert accepts(byte_speaker, grammar, text) == comes


# A grammar as a tree: a text, a name, or (kind, parts).
NODES = st.recursive(
    st.sampled_from(["a", "b", "ab", "", "[a]", "[^b]", "."]),
    lambda inner: st.one_of(
        st.tuples(st.just("sequence"), st.lists(inner, min_size=1, max_size=3)),
        st.tuples(st.just("either"), st.lists(inner, min_size=1, max_size=3)),
        st.tuples(st.sampled_from(["*", "+", "?", "{2}", "{1,2}", "{1,}"]), st.tuples(inner)),
    ),
    max_leaves=6,
)
TIMES = {"*": (0, 9), "+": (1, 9), "?": (0, 1), "{2}": (2, 2), "{1,2}": (1, 2), "{1,}": (1, 9)}


def written(node) -> str:
    if isinstance(node, str):
        return node if node[:1] in ("[", ".") or node.startswith("rule") else json.dumps(node)
    kind, parts = node
    between = {"sequence": " ", "either": " | "}.get(kind, "")
    return f"({between.join(map(written, parts))})" + (kind if kind in TIMES else "")


def ends(node, text: str, begins: set[int], rules) -> set[int]:
    """Where a node may end in the text, by trying everything."""
    if isinstance(node, str) and node in rules:
        return ends(rules[node], text, begins, rules)
    if isinstance(node, str):
        classes = {"[a]": "a", "[^b]": "a", ".": "ab"}
        if node in classes:
            return {begin + 1 for begin in begins if text[begin : begin + 1] in set(classes[node])}
        return {begin + len(node) for begin in begins if text.startswith(node, begin)}
    kind, parts = node
    if kind == "either":
        return set().union(*(ends(part, text, begins, rules) for part in parts))
    if kind == "sequence":
        for part in parts:
            begins = ends(part, text, begins, rules)
        return begins
    least, most = TIMES[kind]
    found = set() if least else set(begins)
    for count in range(1, most + 1):
        begins = ends(parts[0], text, begins, rules)
        if count >= least:
            found |= begins
    return found


@settings(max_examples=40, deadline=None)
@given(st.lists(NODES, min_size=1, max_size=3), st.booleans())
def test_without_recursion_the_texts_are_exactly_those_of_the_grammar(byte_speaker, nodes, refers):
    rules = {f"rule{place}": node for place, node in enumerate(nodes)}
    root = ("sequence", list(rules)) if refers else ("either", [*rules, "b"])
    grammar = "\n".join(
        [f"root ::= {written(root)}", *(f"{name} ::= {written(node)}" for name, node in rules.items())]
    )
    compiled = byte_speaker.compiler.compile(Grammar("lark", gbnf_to_lark(grammar))).result(30)
    for length in range(5):
        for letters in itertools.product("ab", repeat=length):
            text = "".join(letters)
            matcher = compiled.matcher()
            try:
                matcher.accept_all(list(text.encode()))
                accepted = matcher.may_end
            except GrammarError:
                accepted = False
            assert accepted == (len(text) in ends(root, text, {0}, rules)), (grammar, text)


@pytest.mark.parametrize(
    ("grammar", "why"),
    [
        ('start ::= "a"', "no rule named root"),
        ("root ::= missing", "does not have"),
        ('root ::= "a" )', "must consist of rules"),
        ('root ::= ("a"', "never closed"),
        ('root ::= "a', "cannot be read at character 10 of line 1"),
        ('root ::= "a"\nroot ::= "b"', "same name"),
        ("root ::= *", "repeats nothing"),
        ('root ::= "a"**', "repeats nothing"),
        ('root ::= "a"{3,2}', "below its least"),
        ('root ::= "a"{10001}', "10000 times"),
        ('root ::= "a"{1,1000001}', "10000 times"),
        ('root ::= "a"{' + "9" * 5000 + "}", "10000 times"),
        ('root ::= "a"{' + "9" * 5000 + ",1}", "10000 times"),
        (r"root ::= [\d]+", "backslash before a letter or digit"),
        (r'root ::= "\w"', "backslash before a letter or digit"),
        (r'root ::= "\x4"', "backslash before a letter or digit"),
        (r"root ::= [\7]", "backslash before a letter or digit"),
        ("root ::= [z-a]", "ends before it begins"),
        ("root ::= [^]", "empty class"),
        ('root ::= "\\U00110000"', "does not exist"),
        ("root ::= <think> .*", "line 1"),
        ("root ::= " + "(" * 29 + '"a"' + ")" * 29, "28 deep"),
    ],
)
def test_what_is_wrong_is_said(grammar, why):
    with pytest.raises(ValueError, match=rf"^grammar .*{why}"):
        gbnf_to_lark(grammar)


@pytest.mark.parametrize(
    "lark",
    ['start: "root ::= a"', "%llguidance {}\nstart: A\nA: /x ::= y/", '// root ::= "a"\nstart: "b"', ""],
)
def test_lark_is_not_taken_for_gbnf(lark):
    assert not is_gbnf(lark)


@pytest.mark.parametrize(
    "hostile",
    [
        "".join(f"r{i} ::= r{i + 1}\n" for i in range(2000)) + 'r2000 ::= "a"\nroot ::= r0',
        'root ::= "a"' + " | [a-z]" * 3600,
        "#" * 32_000,
        " \n" * 16_000,
        'root ::= "' + "\\x41" * 8000 + '"',
        "root ::= " + '("a"' * 28 + ")*" * 28,
        "a" * 32_000,
        *('root ::= "a"' + begun + " " * 32_000 for begun in ("{", "{1", "{1,", "{1,2", "", "a")),
        'root ::= "a"{' + "1" * 32_000,
        'root ::= "a"{1,' + "1" * 16_000 + " " * 16_000,
        'root ::= "' + "a" * 32_000,
        "root ::= [" + "\\a" * 16_000,
        "#\n " * 10_666 + "a" + " " * 100,
        "a" * 16_000 + " " * 16_000,
    ],
)
def test_rewriting_takes_linear_time(hostile):
    assert len(hostile) <= MAX_BYTES["lark"]
    begun = time.process_time()
    is_gbnf(hostile)
    with contextlib.suppress(ValueError):
        gbnf_to_lark(hostile)
    assert time.process_time() - begun < 1
