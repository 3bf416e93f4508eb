"""A process that compiles grammars and says what came of it; it can be killed, which a thread cannot.

Native code cannot be interrupted, and a hostile grammar may keep it busy for minutes, take much memory or
break it. In a process of its own it takes nothing with it. Only verdicts come back, as JSON in frames:

    {"vocab_size": ..., "eos_token_ids": [...]}, tokenizer.json     ->  {}
    {"grammar": {...}}                                              ->  {"error": null or why not}
    {"elements": ["<think>", ...]}                                  ->  {"elements": ["<[128013]>", ...]}
"""

from __future__ import annotations

import json
import os
import resource
import signal
import struct
import subprocess
import sys
import threading
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import asdict
from typing import IO, Any

from rhizome_grammar.compiler import GrammarCompiler
from rhizome_grammar.errors import GrammarError
from rhizome_grammar.spec import Grammar

_LENGTH = struct.Struct("<I")
_START_LIMIT_S = 60.0
"""To start Python and build the vocabulary, which takes a second for the largest."""
_MAX_ADDRESS_SPACE = 4 * 2**30
_UNLIMITED_S = 3600.0
"""Inside of the process; whoever asked kills it at the limit."""


class CompilerProcess:
    """The process as its owner sees it: started when first asked, anew after it was killed. For one thread.

    Args:
        tokenizer_json: contents of the checkpoint's tokenizer.json.
        vocab_size: of the model.
        eos_token_ids: each ends an output.
        limit_s: wall-clock seconds that one question may take.
    """

    def __init__(
        self, tokenizer_json: bytes, vocab_size: int, eos_token_ids: Sequence[int], *, limit_s: float
    ) -> None:
        self._tokenizer_json = tokenizer_json
        self._model = {"vocab_size": vocab_size, "eos_token_ids": list(eos_token_ids)}
        self._asking = threading.Lock()
        self._limit_s = limit_s
        self._process: subprocess.Popen[bytes] | None = None

    @property
    def is_running(self) -> bool:
        """Whether there is a process now."""
        return self._process is not None

    def compile(self, grammar: Grammar) -> None:
        """Have a grammar compiled and tried out.

        Raises:
            GrammarError: it cannot be compiled or followed, or takes too long or too much memory.
        """
        self._ask({"grammar": asdict(grammar)})

    def elements(self, texts: Sequence[str]) -> list[str]:
        """Texts as elements of a Lark rule, see `GrammarCompiler.element`.

        Raises:
            GrammarError: grammars cannot be used with this model.
        """
        elements: list[str] = self._ask({"elements": list(texts)})["elements"]
        return elements

    def stop(self) -> None:
        """End the process, whatever it does; a question that is open fails. From any thread."""
        if (process := self._process) is not None:
            process.kill()
        with self._asking:
            self._end()

    def _ask(self, question: Mapping[str, Any]) -> dict[str, Any]:
        with self._asking:
            if self._process is None:
                self._process = subprocess.Popen(
                    [sys.executable, "-P", "-m", __spec__.name],
                    stdin=subprocess.PIPE,
                    stdout=subprocess.PIPE,
                    # NumPy would reserve memory for each core, and only bits are counted here.
                    env={**os.environ, "OPENBLAS_NUM_THREADS": "1", "OMP_NUM_THREADS": "1"},
                )
                self._exchange(_START_LIMIT_S, json.dumps(self._model).encode(), self._tokenizer_json)
            answer = self._exchange(self._limit_s, json.dumps(question).encode())
        if (error := answer.get("error")) is not None:
            raise GrammarError(error)
        return answer

    def _exchange(self, limit_s: float, *frames: bytes) -> dict[str, Any]:
        process = self._process
        assert process is not None and process.stdin is not None and process.stdout is not None
        expired = threading.Event()

        def expire() -> None:
            expired.set()
            process.kill()

        timer = threading.Timer(limit_s, expire)
        timer.daemon = True
        timer.start()
        answer = None
        try:
            for frame in frames:
                _write(process.stdin, frame)
            answer = _read(process.stdout)
        except BrokenPipeError:
            pass
        finally:
            timer.cancel()
        if answer is not None:
            message: dict[str, Any] = json.loads(answer)
            return message
        self._end()
        if expired.is_set():
            raise GrammarError(f"compiling the grammar took more than {limit_s:g} s; simplify it")
        raise GrammarError("compiling the grammar took too much memory; simplify it")

    def _end(self) -> None:
        process, self._process = self._process, None
        if process is not None:
            process.kill()
            for pipe in (process.stdin, process.stdout):
                with suppress(BrokenPipeError):
                    if pipe is not None:
                        pipe.close()
            process.wait()


def _write(stream: IO[bytes], body: bytes) -> None:
    stream.write(_LENGTH.pack(len(body)) + body)
    stream.flush()


def _read(stream: IO[bytes]) -> bytes | None:
    """The next frame, None at the end."""
    head = stream.read(_LENGTH.size)
    if len(head) < _LENGTH.size:
        return None
    (length,) = _LENGTH.unpack(head)
    body = stream.read(length)
    return body if len(body) == length else None


def _answer(compiler: GrammarCompiler, question: Mapping[str, Any]) -> dict[str, Any]:
    try:
        if "elements" in question:
            return {"elements": [compiler.element(text) for text in question["elements"]]}
        compiler.compile(_grammar(question["grammar"])).result()
    except GrammarError as error:
        return {"error": str(error)}
    return {"error": None}


def _grammar(fields: Mapping[str, Any]) -> Grammar:
    parts = tuple((name, _grammar(part)) for name, part in fields["parts"])
    return Grammar(**{**fields, "choices": tuple(fields["choices"]), "parts": parts})


def main() -> None:
    """Answer questions on standard input until it ends."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is the owner's
    resource.setrlimit(resource.RLIMIT_AS, (_MAX_ADDRESS_SPACE, _MAX_ADDRESS_SPACE))
    questions, answers = sys.stdin.buffer, sys.stdout.buffer
    model, tokenizer_json = _read(questions), _read(questions)
    if model is not None and tokenizer_json is not None:
        compiler = GrammarCompiler(
            tokenizer_json, **json.loads(model), workers=1, limit_s=_UNLIMITED_S, cache_size=1
        )
        compiler.warm_up().exception()  # an error is the answer to the first question
        _write(answers, b"{}")
        while (question := _read(questions)) is not None:
            _write(answers, json.dumps(_answer(compiler, json.loads(question))).encode())
    os._exit(0)


if __name__ == "__main__":
    main()
