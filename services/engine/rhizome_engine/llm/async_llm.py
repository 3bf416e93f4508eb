"""The engine for event loops: many callers share its batches, none of them steps it."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any, Self, Unpack

from rhizome_engine.embedding.pooling import Pooling
from rhizome_engine.llm.engine_thread import EngineThread, Waiter
from rhizome_engine.llm.job import Job
from rhizome_engine.llm.jobs import completions, embeddings
from rhizome_engine.llm.llm import LLM
from rhizome_engine.llm.options import AnswerOptions
from rhizome_engine.llm.outputs import Completion, Delta, Embedding
from rhizome_engine.llm.prompts import Conversation, Prompt, several, several_conversations
from rhizome_engine.sampling.params import SamplingParams
from rhizome_engine.scheduler.load import Load
from rhizome_text.tokenizer import Tokenizer


class AsyncLLM:
    """A checkpoint, ready to answer any number of tasks, in one event loop or several.

    The engine runs in a thread of its own, which begins here and ends with `close`, or with `async with`.
    Cancelling a task that waits for an answer, or leaving a stream, ends what it asked for.

    Args:
        model: a Hugging Face checkpoint directory, or an `LLM`, which nobody else may use from then on.
            Loading takes its time: in a running event loop, `await asyncio.to_thread(AsyncLLM, path)`.
        **options: as for `LLM`.

    Attributes:
        tokenizer: the checkpoint's.
        default_sampling: the checkpoint's recommendation.
    """

    def __init__(self, model: str | Path | LLM, **options: Any) -> None:
        llm = model if isinstance(model, LLM) else LLM(model, **options)
        self.tokenizer: Tokenizer = llm.tokenizer
        self.default_sampling: SamplingParams = llm.default_sampling
        self._llm = llm
        self._thread = EngineThread(llm.core)

    async def generate(
        self,
        prompts: Prompt | Sequence[Prompt],
        params: SamplingParams | None = None,
        *,
        n: int = 1,
        **options: Unpack[AnswerOptions],
    ) -> list[Completion]:
        """Continue prompts; see `LLM.generate`."""
        job = self._llm.jobs.texts(several(prompts), params, n=n, **options)
        await self._finish(job)
        return completions(job, n)

    async def chat(
        self,
        messages: Conversation | Sequence[Conversation],
        params: SamplingParams | None = None,
        *,
        tools: Sequence[Mapping[str, Any]] | None = None,
        n: int = 1,
        **options: Unpack[AnswerOptions],
    ) -> list[Completion]:
        """Answer conversations; see `LLM.chat`."""
        prompts = [self.chat_prompt(one, tools=tools) for one in several_conversations(messages)]
        return await self.generate(prompts, params, n=n, **options)

    def chat_prompt(
        self, messages: Conversation, *, tools: Sequence[Mapping[str, Any]] | None = None
    ) -> list[int]:
        """The token ids that `chat` answers, for `stream`; see `LLM.chat_prompt`."""
        return self._llm.chat_prompt(messages, tools=tools)

    async def stream(
        self,
        prompt: Prompt,
        params: SamplingParams | None = None,
        **options: Unpack[AnswerOptions],
    ) -> AsyncGenerator[Delta, None]:
        """Continue one prompt and see the answer grow.

        A loop that is left early ends the request when the generator is closed, which Python does some time
        later; `contextlib.aclosing` does it at once.

        Args:
            prompt: as for `LLM.generate`.
            params: as for `LLM.generate`.
            **options: see `AnswerOptions`.

        Yields:
            What was added; the last one holds the whole answer.

        Raises:
            EngineError: as for `LLM.generate`, or the engine was closed.
        """
        job = self._llm.jobs.texts([prompt], params, streams=True, **options)
        waiter = Waiter(job)
        self._thread.start(waiter)
        try:
            while not (job.done and not job.deltas):
                while job.deltas:
                    yield job.deltas.popleft()
                if not job.done:
                    await waiter.news.wait()
                    waiter.news.clear()
        finally:
            if not job.done:
                self._thread.give_up(waiter)
        if job.error is not None:
            raise job.error

    async def embed(
        self,
        inputs: Prompt | Sequence[Prompt],
        *,
        pooling: Pooling | str | None = None,
        normalize: bool = True,
    ) -> list[Embedding]:
        """Turn inputs into vectors; see `LLM.embed`."""
        job = self._llm.jobs.vectors(several(inputs), pooling, normalize=normalize)
        await self._finish(job)
        return embeddings(job)

    async def load(self) -> Load:
        """How busy the engine is now.

        Raises:
            EngineError: the engine was closed, or failed.
        """
        return await asyncio.wrap_future(self._thread.ask(lambda core: core.load()))

    async def close(self) -> None:
        """End what is open, whose callers get an `EngineError`, and the thread; twice is no error."""
        await asyncio.to_thread(self._thread.close)
        await asyncio.to_thread(self._llm.close)

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.close()

    async def _finish(self, job: Job[Any]) -> None:
        waiter = Waiter(job)
        self._thread.start(waiter)
        try:
            while not job.done:
                await waiter.news.wait()
                waiter.news.clear()
        finally:
            if not job.done:
                self._thread.give_up(waiter)
        if job.error is not None:
            raise job.error
