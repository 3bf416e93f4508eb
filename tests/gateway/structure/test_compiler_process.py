"""What happens in the compiler's process stays there."""

import subprocess
import sys
import threading

import pytest

from rhizome_gateway.structure import compiler_process
from rhizome_gateway.structure.compiler_process import CompilerProcess
from rhizome_grammar.errors import GrammarError
from rhizome_grammar.spec import Grammar

from .conftest import DEMO, EOS, VOCAB

ENDLESS = Grammar("lark", "start: a\na: a a | " + " | ".join('"a" a' for _ in range(3000)))
PARTS = (("b", Grammar("choice", choices=("x", "y"))), ("c", Grammar("json_schema", '{"type": "null"}')))


@pytest.fixture
def process():
    process = CompilerProcess((DEMO / "tokenizer.json").read_bytes(), VOCAB, EOS, limit_s=3.0)
    yield process
    process.stop()
    assert not process.is_running


def test_a_grammar_that_takes_too_long_is_killed_and_the_next_one_compiles(process):
    process.compile(Grammar("lark", "start: @b @c", parts=PARTS))
    first = process._process
    with pytest.raises(GrammarError, match="took more than 3 s"):
        process.compile(ENDLESS)
    assert first.returncode is not None
    process.compile(Grammar("json_object"))
    assert process._process.pid != first.pid


def test_a_process_that_dies_is_the_error_of_its_grammar_alone(process):
    process.compile(Grammar("json_object"))
    process._process.kill()
    with pytest.raises(GrammarError, match="too much memory"):
        process.compile(Grammar("regex", "a"))
    process.compile(Grammar("regex", "a"))


def test_it_can_be_stopped_while_it_compiles(process):
    process.compile(Grammar("json_object"))
    errors = []

    def ask():
        with pytest.raises(GrammarError) as raised:
            process.compile(ENDLESS)
        errors.append(raised.value)

    thread = threading.Thread(target=ask)
    thread.start()
    process.stop()
    thread.join(10)
    assert not thread.is_alive() and len(errors) == 1


def test_it_ends_with_its_owner():
    command = [sys.executable, "-m", compiler_process.__name__]
    done = subprocess.run(command, input=b"", capture_output=True, timeout=60)
    assert (done.returncode, done.stdout) == (0, b"")


def test_special_tokens_are_elements_by_id_and_text_is_spelled(process):
    assert process.elements(["<|eot_id|>", "<think>", 'a"b']) == ["<[4]>", '"<think>"', '"a\\"b"']
