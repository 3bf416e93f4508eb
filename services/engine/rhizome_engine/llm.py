"""The engine as a library: no processes, no sockets, the same core."""

from __future__ import annotations

import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from rhizome_engine.batch import TokenLogprobs
from rhizome_engine.core.engine_core import EngineCore
from rhizome_engine.core.events import (
    Event,
    FailedEvent,
    FinishedEvent,
    PromptLogprobsEvent,
    TokensEvent,
)
from rhizome_engine.core.served_model import default_sampling
from rhizome_engine.grammar.compiler import GrammarCompiler
from rhizome_engine.grammar.spec import Grammar
from rhizome_engine.runner import ModelRunner
from rhizome_engine.sampling.params import SamplingParams
from rhizome_engine.scheduler.config import SchedulerConfig
from rhizome_engine.scheduler.request import FinishReason, Request, Timings, Usage
from rhizome_text.text_stream import TextStream
from rhizome_text.tokenizer import Tokenizer
from rhizome_text.tokenizer_files import read_tokenizer_files

Prompt = str | Sequence[int]
Conversation = Sequence[Mapping[str, Any]]
_MAX_ANSWERS = 1024


@dataclass(frozen=True, slots=True)
class Completion:
    """What came of one prompt.

    Attributes:
        prompt_token_ids: the prompt as the model saw it.
        index: which of the prompt's `n` answers this is.
        text: the answer; the prompt comes first where `echo` was asked for.
        token_ids: the answer's tokens, without the stop token; those of a stop string are included.
        finish_reason: "stop" or "length".
        matched_stop: the stop string or the stop token that ended it, None where `max_tokens` did.
        logprobs: one per token where `top_logprobs` was set, else None.
        prompt_logprobs: one per prompt token where asked for, None for the first one; else None.
        usage: tokens counted.
        timings: where the time went.
    """

    prompt_token_ids: list[int]
    index: int
    text: str
    token_ids: list[int]
    finish_reason: str
    matched_stop: str | int | None
    logprobs: list[TokenLogprobs] | None
    prompt_logprobs: list[TokenLogprobs | None] | None
    usage: Usage
    timings: Timings


class LLM:
    """A checkpoint, ready to answer. Not safe to share between threads.

    Args:
        model: a Hugging Face checkpoint directory.
        device: "auto", "cpu", "cuda" or "cuda:N".
        dtype: "auto", "float32", "bfloat16" or "float16".
        attention: "auto" or a back end's name.
        page_size: tokens per KV page.
        num_pages: pages of the KV pool; None sizes it from what is free.
        kv_cache_bytes: the pool's size in bytes instead.
        num_threads: CPU threads; None leaves PyTorch's choice.
        scheduler: limits of batches and steps.
    """

    def __init__(
        self,
        model: str | Path,
        *,
        device: str = "auto",
        dtype: str = "auto",
        attention: str = "auto",
        page_size: int = 16,
        num_pages: int | None = None,
        kv_cache_bytes: int | None = None,
        num_threads: int | None = None,
        scheduler: SchedulerConfig | None = None,
    ) -> None:
        # Whoever calls a library holds all prompts anyway: the queue needs no bound.
        config = replace(scheduler or SchedulerConfig(), max_queue_size=sys.maxsize)
        self.tokenizer = Tokenizer.from_directory(model)
        runner = ModelRunner(
            model,
            device=device,
            dtype=dtype,
            attention=attention,
            page_size=page_size,
            num_pages=num_pages,
            kv_cache_bytes=kv_cache_bytes,
            max_num_tokens=config.max_step_tokens,
            max_num_rows=config.max_batch_size,
            num_slots=config.num_slots,
            num_threads=num_threads,
            overlap=config.overlap,
        )
        self.default_sampling = default_sampling(runner.checkpoint.generation)
        eos_token_ids = runner.checkpoint.eos_token_ids
        grammars = GrammarCompiler(
            read_tokenizer_files(Path(model))["tokenizer.json"], runner.config.vocab_size, eos_token_ids
        )
        self.core = EngineCore(runner, config, eos_token_ids, grammars=grammars)

    def generate(
        self,
        prompts: Prompt | Sequence[Prompt],
        params: SamplingParams | None = None,
        *,
        n: int = 1,
        max_tokens: int | None = None,
        min_tokens: int = 0,
        stop: Sequence[str] = (),
        stop_token_ids: Sequence[int] = (),
        ignore_eos: bool = False,
        echo: bool = False,
        prompt_logprobs: int | None = None,
        grammar: Grammar | None = None,
    ) -> list[Completion]:
        """Continue prompts, all of them together.

        Args:
            prompts: text, tokenised with the model's special tokens, or token ids; one or several.
            params: how tokens are chosen; the checkpoint's recommendation by default.
            n: answers per prompt, which share the prompt's pages; with a seed, answer i gets seed + i.
            max_tokens: most tokens per answer; None fills the context window, 0 only looks at the prompt.
            min_tokens: stop tokens are not chosen before this many.
            stop: strings that end an answer; not part of it.
            stop_token_ids: tokens that end an answer, beside the checkpoint's.
            ignore_eos: do not end at the checkpoint's end-of-sequence tokens.
            echo: put the prompt before the answer's text.
            prompt_logprobs: how many rivals to report beside each prompt token's log probability.
            grammar: what the answers must conform to.

        Returns:
            `n` completions per prompt, those of one prompt next to each other.

        Raises:
            ValueError: `n` is not between 1 and 1,024.
            EngineError: a prompt can never be served, or the model failed; nothing is left running.
        """
        if not 1 <= n <= _MAX_ANSWERS:
            raise ValueError(f"n must be between 1 and {_MAX_ANSWERS}, not {n}")
        answers: dict[str, _Answer] = {}
        try:
            for number, prompt in enumerate(_several(prompts)):
                if isinstance(prompt, str):
                    text, ids = prompt, self.tokenizer.encode(prompt, add_special_tokens=True)
                else:
                    text, ids = self.tokenizer.decode(list(prompt)), list(prompt)
                for index in range(n):
                    request = Request(
                        f"{number}.{index}",
                        ids,
                        _of_choice(params or self.default_sampling, index),
                        max_tokens=max_tokens,
                        min_tokens=min_tokens,
                        stop_token_ids=stop_token_ids,
                        ignore_eos=ignore_eos,
                        grammar=grammar,
                        # The same for all answers to a prompt.
                        prompt_logprobs=prompt_logprobs if index == 0 else None,
                    )
                    self.core.add(request)
                    stream = TextStream(self.tokenizer, stop)
                    answers[request.request_id] = _Answer(request, index, stream, text if echo else "")
            self._finish_all(answers)
        except BaseException:
            self.core.drop_peer(None)
            raise
        return _completions(list(answers.values()), n)

    def _finish_all(self, answers: Mapping[str, _Answer]) -> None:
        while self.core.has_work:
            if not self.core.is_runnable:
                time.sleep(0.001)  # a grammar is being compiled
            for event in self.core.step():
                if answers[event.request.request_id].take(event):
                    self.core.cancel(event.request.request_id, satisfied=True)

    def chat(
        self,
        messages: Conversation | Sequence[Conversation],
        params: SamplingParams | None = None,
        *,
        tools: Sequence[Mapping[str, Any]] | None = None,
        **settings: Any,
    ) -> list[Completion]:
        """Answer conversations through the checkpoint's chat template.

        Args:
            messages: one conversation, `[{"role": ..., "content": ...}, ...]`, or several.
            params: as for `generate`.
            tools: shown to the model, as in the OpenAI API.
            **settings: as for `generate`.

        Raises:
            ValueError: the checkpoint has no chat template.
            ChatTemplateError: the template refused a conversation.
            EngineError: as for `generate`.
        """
        template = self.tokenizer.chat_template(tools=bool(tools))
        if template is None:
            raise ValueError("the checkpoint has no chat template; use generate with a prompt of your own")
        conversations = [messages] if messages and isinstance(messages[0], Mapping) else messages
        prompts = [
            self.tokenizer.encode(template.render(conversation, tools))  # type: ignore[arg-type]
            for conversation in conversations
        ]
        return self.generate(prompts, params, **settings)


class _Answer:
    """Collects what the core tells about one request."""

    def __init__(self, request: Request, index: int, stream: TextStream, shown_prompt: str) -> None:
        self._request = request
        self._index = index
        self._stream = stream
        self._pieces: list[str] = [shown_prompt]
        self._token_ids: list[int] = []
        self._logprobs: list[TokenLogprobs] | None = None
        self._matched: str | int | None = None
        self._end: FinishedEvent | None = None
        self.prompt_logprobs: list[TokenLogprobs | None] | None = None
        if request.prompt_logprobs is not None:
            self.prompt_logprobs = [None]

    def take(self, event: Event) -> bool:
        """Note an event; True when a stop string ended the answer, so that the request is to be cancelled."""
        match event:
            case TokensEvent() if self._matched is None:
                chunk = self._stream.push(event.token_ids)
                self._pieces.append(chunk.text)
                self._token_ids += event.token_ids
                if event.logprobs is not None:
                    if self._logprobs is None:
                        self._logprobs = []
                    self._logprobs += event.logprobs
                self._matched = chunk.matched_stop
                return self._matched is not None
            case PromptLogprobsEvent():
                assert self.prompt_logprobs is not None
                self.prompt_logprobs += event.logprobs
            case FinishedEvent():
                self._end = event
                if self._matched is None:
                    rest = self._stream.finish()
                    self._pieces.append(rest.text)
                    self._matched = rest.matched_stop or event.stop_token_id
            case FailedEvent():
                raise event.error
        return False

    def completion(self, prompt_logprobs: list[TokenLogprobs | None] | None) -> Completion:
        """The whole answer."""
        assert self._end is not None
        stopped = self._matched is not None or self._end.reason is FinishReason.STOP
        return Completion(
            prompt_token_ids=self._request.prompt_ids,
            index=self._index,
            text="".join(self._pieces),
            token_ids=self._token_ids,
            finish_reason=(FinishReason.STOP if stopped else FinishReason.LENGTH).value,
            matched_stop=self._matched,
            logprobs=self._logprobs,
            prompt_logprobs=prompt_logprobs,
            usage=self._end.usage,
            timings=self._end.timings,
        )


def _several(prompts: Prompt | Sequence[Prompt]) -> Sequence[Prompt]:
    if isinstance(prompts, str) or (prompts and isinstance(prompts[0], int)):
        return [prompts]  # type: ignore[list-item]
    return prompts  # type: ignore[return-value]


def _of_choice(params: SamplingParams, index: int) -> SamplingParams:
    """Settings of answer `index` to a prompt."""
    return params if params.seed is None or not index else replace(params, seed=params.seed + index)


def _completions(answers: Sequence[_Answer], n: int) -> list[Completion]:
    """All answers, those to one prompt with the log probabilities of that prompt."""
    return [
        answer.completion(answers[place - place % n].prompt_logprobs) for place, answer in enumerate(answers)
    ]
