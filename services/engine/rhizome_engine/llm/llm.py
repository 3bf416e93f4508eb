"""The engine in this thread: whoever waits for an answer steps the core."""

from __future__ import annotations

import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, Unpack

from rhizome_engine.core.engine_core import EngineCore
from rhizome_engine.core.served_model import default_sampling
from rhizome_engine.embedding.pooling import Pooling
from rhizome_engine.embedding.recommendation import read_recommendation
from rhizome_engine.llm.answer import Answer
from rhizome_engine.llm.job import Job
from rhizome_engine.llm.jobs import JobMaker, completions, embeddings
from rhizome_engine.llm.options import AnswerOptions
from rhizome_engine.llm.outputs import Completion, Delta, Embedding
from rhizome_engine.llm.prompts import (
    Conversation,
    Prompt,
    render_conversation,
    several,
    several_conversations,
)
from rhizome_engine.parallel.runner import load_runner
from rhizome_engine.sampling.params import SamplingParams
from rhizome_engine.scheduler.config import SchedulerConfig
from rhizome_engine.weights.choose import Quantization
from rhizome_grammar.compiler import GrammarCompiler
from rhizome_text.tokenizer import Tokenizer
from rhizome_text.tokenizer_files import read_tokenizer_files

_GRAMMAR_POLL_S = 0.001


class LLM:
    """A checkpoint, ready to answer. Not safe to share between threads; `AsyncLLM` is.

    Args:
        model: a Hugging Face checkpoint directory.
        scheduler: limits of batches and steps.
        device: "auto", "cpu", "cuda" or "cuda:N".
        tensor_parallel: processes that compute the model together, this one included, on as many GPUs; one
            such model at a time in a process.
        dtype: "auto", "float32", "bfloat16" or "float16", of weights.
        kv_cache_dtype: the same, of the KV pool.
        quantization: "none", "int8", "fp8" or "int4": how weights are kept, whatever the checkpoint holds.
        kernels: "auto", "native", "triton" or "torch".
        attention: "auto" or a back end's name.
        graphs: "auto" records steps on a GPU and replays them, "off" never does.
        page_size: tokens per KV page.
        num_pages: pages of the KV pool; None sizes it from what is free.
        kv_memory: the pool's size instead, in bytes, as "4GiB", or as "60%" of what is free.
        kv_host_memory: memory of the host for prefixes that leave the pool, as "8GiB"; None for none.
        num_threads: CPU threads; None leaves it to the machine.
        progress: show on stderr how far loading is.

    Attributes:
        tokenizer: the checkpoint's.
        default_sampling: the checkpoint's recommendation.
        core: what schedules and computes.
        jobs: makes requests for it.
    """

    def __init__(
        self,
        model: str | Path,
        *,
        scheduler: SchedulerConfig | None = None,
        device: str = "auto",
        tensor_parallel: int = 1,
        dtype: str = "auto",
        kv_cache_dtype: str = "auto",
        quantization: Quantization = "none",
        kernels: str = "auto",
        attention: str = "auto",
        graphs: str = "auto",
        page_size: int = 16,
        num_pages: int | None = None,
        kv_memory: str | int | None = None,
        kv_host_memory: str | int | None = None,
        num_threads: int | None = None,
        progress: bool = False,
    ) -> None:
        # Whoever calls a library holds all prompts anyway: the queue needs no bound.
        config = replace(scheduler or SchedulerConfig(), max_queue_size=sys.maxsize)
        self.tokenizer = Tokenizer.from_directory(model)
        runner = load_runner(
            model,
            tensor_parallel=tensor_parallel,
            device=device,
            dtype=dtype,
            kv_cache_dtype=kv_cache_dtype,
            quantization=quantization,
            kernels=kernels,
            attention=attention,
            graphs=graphs,
            page_size=page_size,
            num_pages=num_pages,
            kv_memory=kv_memory,
            kv_host_memory=kv_host_memory,
            max_num_tokens=config.max_step_tokens,
            max_num_rows=config.max_batch_size,
            max_context_tokens=config.max_context_tokens,
            num_slots=config.num_slots,
            num_threads=num_threads,
            overlap=config.overlap,
            progress=progress,
        )
        eos_token_ids = runner.checkpoint.eos_token_ids
        grammars = None
        if eos_token_ids:
            tokenizer_json = read_tokenizer_files(Path(model))["tokenizer.json"]
            grammars = GrammarCompiler(tokenizer_json, runner.config.vocab_size, eos_token_ids)
        self.default_sampling = default_sampling(runner.checkpoint.generation)
        self.core = EngineCore(
            runner, config, eos_token_ids, grammars=grammars, num_host_pages=runner.num_host_pages
        )
        self._runner = runner
        self._is_stepping = False
        self._given_up: list[Job[Any]] = []
        self.jobs = JobMaker(self.tokenizer, self.default_sampling, read_recommendation(Path(model)))

    def generate(
        self,
        prompts: Prompt | Sequence[Prompt],
        params: SamplingParams | None = None,
        *,
        n: int = 1,
        **options: Unpack[AnswerOptions],
    ) -> list[Completion]:
        """Continue prompts, all of them together.

        Args:
            prompts: text, tokenised with the model's special tokens, or token ids; one or several.
            params: how tokens are chosen; the checkpoint's recommendation by default.
            n: answers per prompt, which share the prompt's pages; with a seed, answer i gets seed + i.
            **options: see `AnswerOptions`.

        Returns:
            `n` completions per prompt, those of one prompt next to each other.

        Raises:
            ValueError: `n` is not between 1 and 1,024.
            EngineError: a prompt can never be served, or the model failed; nothing is left running.
        """
        job = self.jobs.texts(several(prompts), params, n=n, **options)
        self._finish(job)
        return completions(job, n)

    def chat(
        self,
        messages: Conversation | Sequence[Conversation],
        params: SamplingParams | None = None,
        *,
        tools: Sequence[Mapping[str, Any]] | None = None,
        n: int = 1,
        **options: Unpack[AnswerOptions],
    ) -> list[Completion]:
        """Answer conversations through the checkpoint's chat template.

        Args:
            messages: one conversation, `[{"role": ..., "content": ...}, ...]`, or several.
            params: as for `generate`.
            tools: shown to the model, as in the OpenAI API.
            n: as for `generate`.
            **options: see `AnswerOptions`.

        Raises:
            ValueError: the checkpoint has no chat template.
            ChatTemplateError: the template refused a conversation.
            EngineError: as for `generate`.
        """
        prompts = [self.chat_prompt(one, tools=tools) for one in several_conversations(messages)]
        return self.generate(prompts, params, n=n, **options)

    def chat_prompt(
        self, messages: Conversation, *, tools: Sequence[Mapping[str, Any]] | None = None
    ) -> list[int]:
        """The token ids that `chat` answers, for `stream`.

        Raises:
            ValueError: the checkpoint has no chat template.
            ChatTemplateError: the template refused the conversation.
        """
        return render_conversation(messages, tools, self.tokenizer)

    def stream(
        self,
        prompt: Prompt,
        params: SamplingParams | None = None,
        **options: Unpack[AnswerOptions],
    ) -> Iterator[Delta]:
        """Continue one prompt and see the answer grow. Leaving the loop early ends the request.

        Several streams, and calls of the other methods, may be under way at once: each `next` moves all of
        them on.

        Args:
            prompt: as for `generate`.
            params: as for `generate`.
            **options: see `AnswerOptions`.

        Yields:
            What was added; the last one holds the whole answer.

        Raises:
            EngineError: as for `generate`.
        """
        job = self.jobs.texts([prompt], params, streams=True, **options)
        job.start(self.core)
        try:
            while True:
                while job.deltas:
                    yield job.deltas.popleft()
                if job.done:
                    break
                self._step()
        finally:
            self._give_up(job)
        if job.error is not None:
            raise job.error

    def embed(
        self,
        inputs: Prompt | Sequence[Prompt],
        *,
        pooling: Pooling | str | None = None,
        normalize: bool = True,
    ) -> list[Embedding]:
        """Turn inputs into vectors, all of them together.

        Args:
            inputs: text, tokenised with the model's special tokens, or token ids; one or several.
            pooling: "mean", "last_token" or "cls"; None for the checkpoint's, which is the mean where it says
                nothing.
            normalize: scale each vector to length 1.

        Returns:
            One per input, in order.

        Raises:
            ValueError: there is no such pooling.
            EngineError: an input is empty or too long, or the model failed; nothing is left running.
        """
        job = self.jobs.vectors(several(inputs), pooling, normalize=normalize)
        self._finish(job)
        return embeddings(job)

    def close(self) -> None:
        """End the other processes of a model of several ranks; the garbage collector does so too.

        Nothing may be asked afterwards.
        """
        self._runner.close()

    def _finish(self, job: Job[Any]) -> None:
        job.start(self.core)
        try:
            while not job.done:
                self._step()
        finally:
            self._give_up(job)
        if job.error is not None:
            raise job.error

    def _step(self) -> None:
        if not self.core.is_runnable:
            time.sleep(_GRAMMAR_POLL_S)
        self._is_stepping = True
        try:
            events = self.core.step()
        finally:
            self._is_stepping = False
        for event in events:
            job: Job[Answer] = event.request.peer  # type: ignore[assignment] # given by this class
            job.take(event, self.core)
        while self._given_up:
            self._give_up(self._given_up.pop())

    def _give_up(self, job: Job[Any]) -> None:
        """End what a job left open; after the step, where it is collected as garbage during one."""
        if self._is_stepping:
            self._given_up.append(job)
        elif not job.done:
            job.end(self.core)
