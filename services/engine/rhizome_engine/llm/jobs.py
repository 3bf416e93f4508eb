"""From what a caller wants to requests for the core."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Unpack

from rhizome_engine.embedding.pooling import EmbeddingParams, Pooling
from rhizome_engine.embedding.recommendation import PoolingRecommendation
from rhizome_engine.llm.answer import TextAnswer, VectorAnswer
from rhizome_engine.llm.job import Job
from rhizome_engine.llm.options import AnswerOptions
from rhizome_engine.llm.outputs import Completion, Embedding
from rhizome_engine.llm.prompts import Prompt, token_ids_of
from rhizome_engine.sampling.params import SamplingParams
from rhizome_engine.scheduler.request import Request
from rhizome_text.text_stream import TextStream
from rhizome_text.tokenizer import Tokenizer

_MAX_ANSWERS = 1024


class JobMaker:
    """Tokenises and fills in what the checkpoint recommends. Safe to share between threads.

    Args:
        tokenizer: the checkpoint's.
        sampling: for those who choose none.
        pooling: likewise.
    """

    def __init__(
        self, tokenizer: Tokenizer, sampling: SamplingParams, pooling: PoolingRecommendation
    ) -> None:
        self._tokenizer = tokenizer
        self._sampling = sampling
        self._pooling = pooling

    def texts(
        self,
        prompts: Sequence[Prompt],
        params: SamplingParams | None,
        *,
        n: int = 1,
        streams: bool = False,
        **options: Unpack[AnswerOptions],
    ) -> Job[TextAnswer]:
        """`n` answers to each prompt, those to one prompt next to each other.

        Raises:
            ValueError: `n` is not between 1 and 1,024.
        """
        if not 1 <= n <= _MAX_ANSWERS:
            raise ValueError(f"n must be between 1 and {_MAX_ANSWERS}, not {n}")
        answers: list[TextAnswer] = []
        for prompt in prompts:
            ids = token_ids_of(prompt, self._tokenizer)
            shown = ""
            if options.get("echo"):
                shown = prompt if isinstance(prompt, str) else self._tokenizer.decode(ids)
            for index in range(n):
                request = Request(
                    str(len(answers)),
                    ids,
                    _of_choice(params or self._sampling, index),
                    max_tokens=options.get("max_tokens"),
                    min_tokens=options.get("min_tokens", 0),
                    stop_token_ids=options.get("stop_token_ids", ()),
                    ignore_eos=options.get("ignore_eos", False),
                    grammar=options.get("grammar"),
                    # The same for all answers to a prompt.
                    prompt_logprobs=options.get("prompt_logprobs") if index == 0 else None,
                )
                stream = TextStream(self._tokenizer, options.get("stop", ()))
                answers.append(TextAnswer(request, index, stream, shown))
        return Job(answers, streams=streams)

    def vectors(
        self, inputs: Sequence[Prompt], pooling: Pooling | str | None, *, normalize: bool
    ) -> Job[VectorAnswer]:
        """One vector for each input.

        Raises:
            ValueError: there is no such pooling.
        """
        params = EmbeddingParams(self._choose(pooling), normalize)
        ids = [token_ids_of(prompt, self._tokenizer) for prompt in inputs]
        return Job([VectorAnswer(Request(str(i), each, embedding=params)) for i, each in enumerate(ids)])

    def _choose(self, pooling: Pooling | str | None) -> Pooling:
        if pooling is None:
            return self._pooling.choose()
        try:
            return Pooling(pooling)
        except ValueError:
            names = ", ".join(repr(one.value) for one in Pooling)
            raise ValueError(f"pooling must be one of {names}, not {pooling!r}") from None


def completions(job: Job[TextAnswer], n: int) -> list[Completion]:
    """What came of a job that is done, those of one prompt with the log probabilities of that prompt."""
    answers = [answer.completion for answer in job.answers]
    return [
        replace(completion, prompt_logprobs=first.prompt_logprobs)
        for place, completion in enumerate(answers)
        if completion is not None and (first := answers[place - place % n]) is not None
    ]


def embeddings(job: Job[VectorAnswer]) -> list[Embedding]:
    """What came of a job that is done."""
    return [answer.embedding for answer in job.answers if answer.embedding is not None]


def _of_choice(params: SamplingParams, index: int) -> SamplingParams:
    """Settings of answer `index` to a prompt."""
    return params if params.seed is None or not index else replace(params, seed=params.seed + index)
