"""Whether a grammar compiles, found out in the gateway, so that a bad one is a 400 before anything begins.

The engine compiles it again and enforces it; what is compiled here is thrown away, only the verdict is kept.
"""

from __future__ import annotations

import asyncio
import hashlib
import queue
import weakref
from collections import OrderedDict
from collections.abc import Callable, Collection, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import suppress
from functools import partial
from typing import TypeVar

from rhizome.engine.v1 import generate_pb2
from rhizome_gateway.structure.compiler_process import CompilerProcess
from rhizome_grammar.errors import CompilerBusyError, GrammarError
from rhizome_grammar.spec import Grammar

T = TypeVar("T")


class GrammarChecker:
    """Compiles each distinct grammar once, in processes of its own; one checker per served tokenizer.

    Nothing is started before the first grammar. The processes end with the checker.

    Args:
        tokenizer_json: contents of the checkpoint's tokenizer.json.
        vocab_size: of the model, which may have more logits than the tokenizer has tokens.
        eos_token_ids: each ends an output.
        workers: grammars that are compiled at once, each by a process.
        limit_s: wall-clock seconds after which compiling a grammar fails.
        max_open: distinct grammars that are compiled or wait for it; more are turned away.
        max_verdicts: verdicts that are remembered, a few hundred bytes each.
    """

    def __init__(
        self,
        tokenizer_json: bytes,
        vocab_size: int,
        eos_token_ids: Sequence[int],
        *,
        workers: int = 2,
        limit_s: float = 10.0,
        max_open: int = 16,
        max_verdicts: int = 4096,
    ) -> None:
        self._processes = [
            CompilerProcess(tokenizer_json, vocab_size, eos_token_ids, limit_s=limit_s)
            for _ in range(workers)
        ]
        # The one that was used last comes first: a second one starts only where one is not enough.
        self._idle: queue.LifoQueue[CompilerProcess] = queue.LifoQueue()
        for process in self._processes:
            self._idle.put(process)
        self._threads = ThreadPoolExecutor(workers, thread_name_prefix="grammar-check")
        self._max_open = max_open
        self._max_verdicts = max_verdicts
        self._open: dict[bytes, Future[None]] = {}
        self._verdicts: OrderedDict[bytes, str | None] = OrderedDict()
        self._elements: dict[str, str] = {}
        weakref.finalize(self, _stop, self._threads, self._processes)

    @property
    def num_open(self) -> int:
        """Grammars that are being compiled, or wait for it."""
        return len(self._open)

    @property
    def num_processes(self) -> int:
        """Processes that exist now."""
        return sum(process.is_running for process in self._processes)

    def close(self) -> None:
        """End the processes; what is being compiled fails."""
        _stop(self._threads, self._processes)

    async def markers(self, texts: Collection[str]) -> Mapping[str, str]:
        """Markers such as `<think>`, which may be special tokens, as elements of a Lark rule.

        Raises:
            GrammarError: grammars cannot be used with this model.
        """
        missing = [text for text in texts if text not in self._elements]
        if missing:
            ask = partial(CompilerProcess.elements, texts=missing)
            elements: list[str] = await asyncio.wrap_future(self._threads.submit(self._with_process, ask))
            self._elements |= zip(missing, elements, strict=True)
        return self._elements

    async def check(self, grammar: Grammar) -> None:
        """Compile a grammar, or remember what came of it.

        Raises:
            CompilerBusyError: too many grammars are being compiled; the same one may pass later.
            GrammarError: it cannot be compiled or followed; the message says why.
        """
        key = _key(grammar)
        if key in self._verdicts:
            self._verdicts.move_to_end(key)
            if (reason := self._verdicts[key]) is not None:
                raise GrammarError(reason)
            return
        future = self._open.get(key)
        if future is None:
            if len(self._open) >= self._max_open:
                raise CompilerBusyError("too many grammars are being compiled; try again")
            ask = partial(CompilerProcess.compile, grammar=grammar)
            future = self._threads.submit(self._with_process, ask)
            self._open[key] = future
            loop = asyncio.get_running_loop()

            def done(future: Future[None]) -> None:
                with suppress(RuntimeError):  # the loop has ended, and nobody waits any more
                    loop.call_soon_threadsafe(self._remember, key, future)

            future.add_done_callback(done)
        # Whoever gives up does not stop the compilation: others may wait for it.
        await asyncio.shield(asyncio.wrap_future(future))

    def _with_process(self, use: Callable[[CompilerProcess], T]) -> T:
        """In a thread of the pool, of which there are as many as processes."""
        process = self._idle.get_nowait()
        try:
            return use(process)
        finally:
            self._idle.put(process)

    def _remember(self, key: bytes, future: Future[None]) -> None:
        self._open.pop(key, None)
        if future.cancelled():
            return
        error = future.exception()
        if error is not None and not isinstance(error, GrammarError):
            return
        self._verdicts[key] = None if error is None else str(error)
        while len(self._verdicts) > self._max_verdicts:
            self._verdicts.popitem(last=False)


def to_proto(grammar: Grammar) -> generate_pb2.Grammar:
    """A grammar as the engine is told."""
    message = generate_pb2.Grammar(flexible_whitespace=grammar.flexible_whitespace)
    match grammar.kind:
        case "json_object":
            message.json_object.SetInParent()
        case "choice":
            message.choice.texts.extend(grammar.choices)
        case kind:
            setattr(message, kind, grammar.text)
    for name, part in grammar.parts:
        message.parts[name].CopyFrom(to_proto(part))
    return message


def _key(grammar: Grammar) -> bytes:
    """Equal for equal grammars; as long for large ones as for small ones."""
    return hashlib.sha256(to_proto(grammar).SerializeToString(deterministic=True)).digest()


def _stop(threads: ThreadPoolExecutor, processes: Sequence[CompilerProcess]) -> None:
    threads.shutdown(wait=False, cancel_futures=True)
    for process in processes:
        process.stop()
