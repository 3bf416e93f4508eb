"""Compiling aside: errors that help, limits that hold, a cache that forgets the oldest."""

import json
import subprocess
import sys
import threading
import time

import pytest

from rhizome_grammar import compiler as compiler_module
from rhizome_grammar.compiler import GrammarCompiler, GrammarError
from rhizome_grammar.spec import Grammar
from rhizome_grammar.timed_pool import TimedPool
from rhizome_testing.byte_tokenizer import byte_tokenizer_json

BYTES = json.dumps(byte_tokenizer_json(320))


@pytest.fixture
def compiler():
    return GrammarCompiler(BYTES, 320, [257], cache_size=3)


def schema(value):
    return Grammar("json_schema", json.dumps(value))


ALL_OF_ANY_OF = {
    "allOf": [
        {"anyOf": [{"properties": {f"p{i}_{j}": {"type": "string"}}} for j in range(6)]} for i in range(8)
    ]
}


@pytest.mark.parametrize(
    ("grammar", "message"),
    [
        (schema({"type": "foo"}), "json_schema: Invalid type: foo"),
        (schema({"not": {"type": "string"}}), r'Unimplemented keys: \["not"\]'),
        (schema({"type": "array", "uniqueItems": True}), "uniqueItems"),
        (schema({"type": "array", "uniqueItems": True, "x-guidance": {"lenient": True}}), "uniqueItems"),
        (schema({"type": "string", "pattern": "(?=a)b"}), "look-around"),
        (schema({"type": "integer", "minimum": 3, "maximum": 1}), "minimum .3. is greater than maximum"),
        (schema({"$ref": "#/$defs/nope"}), "'/\\$defs/nope' does not exist"),
        (schema({"$ref": "http://example.com/s.json"}), "put the definition under"),
        (schema({"oneOf": [{"type": "string"}, {"type": "string", "minLength": 3}]}), "use anyOf"),
        (schema({"$ref": "#"}), "no text matches"),
        (schema(ALL_OF_ANY_OF), "too many combinations"),
        (Grammar("json_schema", '{"properties": {"a": ' * 100 + "{}" + "}}" * 100), "nested too deeply"),
        (Grammar("regex", "(a"), r"\Aregex: regex parse error:\n    \(a\n    \^\nerror: unclosed group\Z"),
        (Grammar("regex", r"(a)\1"), "backreferences are not supported"),
        (Grammar("regex", "(a{1000}){1000}"), "per token; simplify|too complex"),
        (Grammar("lark", "start: foo"), 'unknown name: "foo"'),
        (Grammar("lark", 'begin: "a"'), "no start rule"),
        (Grammar("lark", "start: <|nope|>"), r'unknown special token: "<\|nope\|>"\Z'),
        (Grammar("lark", "start: <[97]>"), r"<\[97\]> is no special token"),
        (Grammar("lark", "start: <[330]>"), r"<\[330\]> is no special token"),  # a padding row of the model
        (Grammar("lark", "start: <[99999]>"), r"<\[99999\]> is no special token"),
        (Grammar("lark", "start: @a", parts=(("a", Grammar("lark", "start: <[97]>")),)), "no special token"),
        (Grammar("lark", "start: @b", parts=(("a", Grammar("regex", "a")),)), "unknown grammar @b"),
        (Grammar("lark", "start: @a", parts=(("a", schema({"not": {}})),)), "Unimplemented keys"),
        (Grammar("lark", "start: " + "(" * 500 + '"a"' + ")" * 500), "too deeply nested"),
        (Grammar("lark", "start: " + " | ".join(f'"x{i}"' for i in range(2200))), "too many alternatives"),
    ],
)
def test_what_cannot_be_compiled_fails_with_a_reason(byte_speaker, grammar, message):
    with pytest.raises(GrammarError, match=message) as raised:
        byte_speaker.compiler.compile(grammar).result(30)
    assert len(str(raised.value)) < 600


CHAINS = """
import json
from rhizome_grammar.compiler import GrammarCompiler
from rhizome_grammar.spec import MAX_BYTES, Grammar
from rhizome_testing.byte_tokenizer import byte_tokenizer_json

def longest(kind, head, link, tail):
    count = (MAX_BYTES[kind] - 100) // (len(link(10_000)) + 1)
    return Grammar(kind, head + "".join(map(link, range(count))) + tail(count))

compiler = GrammarCompiler(json.dumps(byte_tokenizer_json(320)), 320, [257])
for grammar in (
    longest("lark", "start:r0\\n", lambda i: f'r{i}:r{i + 1}"y"\\n', lambda n: f'r{n}:"a"'),
    longest("json_schema", '{"$ref":"#/a0",', lambda i: f'"a{i}":{{"items":{{"$ref":"#/a{i + 1}"}}}},',
            lambda n: f'"a{n}":{{"type":"string"}}}}'),
    longest("json_schema", '{"$ref":"#/a0",', lambda i: f'"a{i}":{{"$ref":"#/a{i + 1}"}},',
            lambda n: f'"a{n}":{{"type":"string"}}}}'),
):
    try:
        matcher = compiler.compile(grammar).result(60).matcher()
        for _ in range(5):
            matcher.accept_all(matcher.forced_tokens(3))
    except ValueError as error:
        print(grammar.kind, str(error)[:100])
print("alive")
"""


def test_the_longest_chains_of_references_do_not_overflow_a_stack():
    """They ended the process before the compiler's threads had deep stacks; hence a process of its own."""
    done = subprocess.run([sys.executable, "-c", CHAINS], capture_output=True, text=True, timeout=100)
    assert done.returncode == 0, done.stderr
    assert done.stdout.endswith("alive\n")


def test_an_overrunning_grammar_fails_at_the_limit_and_others_go_on(monkeypatch):
    compiler = GrammarCompiler(BYTES, 320, [257], workers=1, limit_s=1.0)
    compiler.warm_up().result(30)
    gate, stuck = threading.Event(), Grammar("regex", "stuck")
    original = Grammar.to_llguidance
    monkeypatch.setattr(Grammar, "to_llguidance", lambda g: (g == stuck and gate.wait(60)) or original(g))
    try:
        start = time.monotonic()
        with pytest.raises(GrammarError, match=r"took more than 1 s; simplify it"):
            compiler.compile(stuck).result(30)
        assert time.monotonic() - start < 5
        assert compiler.num_overdue == 1
        assert compiler.compile(Grammar("regex", "ab")).result(30).matcher().forced_tokens(5) == [97, 98]
        again = compiler.compile(stuck)
        assert again.done(), "the failure is remembered"
    finally:
        gate.set()


def test_a_grammar_that_is_slow_to_follow_is_refused_before_the_engine_meets_it(compiler, monkeypatch):
    monkeypatch.setattr(compiler_module, "STEP_LIMIT_S", 0.0)
    with pytest.raises(GrammarError, match=r"regex: following it takes \d+ ms per token"):
        compiler.compile(Grammar("regex", "[a-z]{5}")).result(60)


def test_the_same_grammar_is_compiled_once_for_all_who_ask(compiler):
    barrier, futures = threading.Barrier(8), []

    def ask():
        barrier.wait()
        futures.append(compiler.compile(Grammar("regex", "[a-z]+")))

    threads = [threading.Thread(target=ask) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len({id(future.result(30)) for future in futures}) == 1
    assert (compiler.misses, compiler.hits) == (1, 7)


def test_many_grammars_from_many_threads(byte_speaker):
    grammars = [Grammar("regex", f"x{i}[a-f]{{{i + 1}}}") for i in range(30)]
    futures = [byte_speaker.compiler.compile(grammar) for grammar in grammars]
    for i, future in enumerate(futures):
        matcher = future.result(30).matcher()
        assert bytes(matcher.forced_tokens(9)) == f"x{i}".encode()


def test_the_cache_forgets_the_least_recently_used(compiler):
    a, b, c, d = (Grammar("regex", letter) for letter in "abcd")
    first = [compiler.compile(g) for g in (a, b, c)]
    assert compiler.compile(a) is first[0]
    compiler.compile(d)
    assert len(compiler) == 3
    assert (compiler.hits, compiler.misses) == (1, 4)
    assert compiler.compile(a) is first[0] and compiler.compile(c) is first[2]
    assert compiler.compile(b) is not first[1]
    assert (compiler.hits, compiler.misses) == (3, 5)


def test_failures_are_remembered(compiler):
    first = compiler.compile(Grammar("regex", "(a"))
    with pytest.raises(GrammarError):
        first.result(30)
    assert compiler.compile(Grammar("regex", "(a")) is first
    assert compiler.hits == 1


def test_being_busy_is_not_remembered(compiler, monkeypatch):
    gate = threading.Event()
    compiler._pool = TimedPool(1, 0.05, max_overdue=0, wait_s=0.2)
    stuck = compiler._pool.submit(gate.wait)
    with pytest.raises(GrammarError, match="took more than"):
        stuck.result(30)
    with pytest.raises(GrammarError, match="try again"):
        compiler.compile(Grammar("regex", "a")).result(30)
    gate.set()
    compiler._pool = TimedPool(1, 10)
    assert compiler.compile(Grammar("regex", "a")).result(30).matcher().forced_tokens(3) == [97]


def test_a_start_without_grammars_does_not_import_the_library():
    code = (
        "import sys, rhizome_grammar.compiler as c, rhizome_engine.grammar.masks\n"
        "c.GrammarCompiler('{}', 8, [1])\n"
        "sys.exit('llguidance' in sys.modules)"
    )
    subprocess.run([sys.executable, "-c", code], check=True, timeout=60)


def test_compiling_lets_other_threads_run(byte_speaker):
    """A nasty schema is compiled while this thread counts; it would stand still if the lock were held."""
    values = schema({"enum": [f"value number {i}" for i in range(9000)]})
    future = byte_speaker.compiler.compile(values)
    turns = 0
    while not future.done():
        turns += 1
    future.result()
    assert turns > 100
