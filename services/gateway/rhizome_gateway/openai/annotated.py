"""What some clients want beside an answer: its token ids, how likely the prompt was, what it has cost so far.

Or without its thinking.

These are vLLM's extensions of OpenAI's API. Few requests ask for them, so the response is written as ever and
then amended; the others do not pay for it.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, Protocol

import orjson

from rhizome_gateway.errors import ApiError
from rhizome_gateway.generation.events import Event, Reasoning
from rhizome_gateway.generation.lane import PlannedChoice
from rhizome_gateway.generation.summary import Answer, Summary
from rhizome_gateway.generation.writer import Rendering, StreamWriter
from rhizome_gateway.openai.scored_prompt import ScoredPrompt
from rhizome_gateway.tokenization.spelling import Spelling
from rhizome_text.tokenizer import Tokenizer

_DATA = b"data: "


class Asking(Protocol):
    """What a request says of this."""

    @property
    def return_token_ids(self) -> bool | None:
        """Show the tokens of prompt and answer."""
        ...

    @property
    def prompt_logprobs(self) -> int | None:
        """Show how likely the tokens of prompts were."""
        ...

    @property
    def counts_on(self) -> bool:
        """Show in every chunk of a stream what the response has cost so far."""
        ...

    @property
    def hides_reasoning(self) -> bool:
        """Leave thinking out."""
        ...


def annotated(
    rendering: Rendering,
    request: Asking,
    choices: Sequence[PlannedChoice],
    choices_per_prompt: int,
    tokenizer: Tokenizer,
    *,
    prompt_in_choices: bool,
) -> Rendering:
    """The rendering itself, where nothing more is wanted.

    Args:
        rendering: of the whole request.
        request: what was asked.
        choices: in order of their index; they keep their tokens where `return_token_ids` is set.
        choices_per_prompt: so many in a row share a prompt.
        tokenizer: of the model.
        prompt_in_choices: each choice shows the tokens of its prompt, and not the response.
    """
    prompts: list[ScoredPrompt] = []
    if request.prompt_logprobs is not None:
        spelled = Spelling(tokenizer)
        for first in choices[::choices_per_prompt]:  # the only one that the engine was asked to score it for
            prompts.append(ScoredPrompt(first.request.token_ids.tolist(), spelled))
            first.choice.on_prompt_scored = prompts[-1].add
    if not (prompts or request.return_token_ids or request.counts_on or request.hides_reasoning):
        return rendering
    return _Annotated(rendering, request, choices, choices_per_prompt, prompts, prompt_in_choices)


class _Annotated:
    """See `annotated`."""

    def __init__(
        self,
        rendering: Rendering,
        request: Asking,
        choices: Sequence[PlannedChoice],
        choices_per_prompt: int,
        prompts: Sequence[ScoredPrompt],
        prompt_in_choices: bool,
    ) -> None:
        self._rendering = rendering
        self._request = request
        self._choices = choices
        self._choices_per_prompt = choices_per_prompt
        self._prompts = prompts
        self._prompt_in_choices = prompt_in_choices
        self._prompt_shown = False

    def stream(self, summary: Summary) -> StreamWriter:
        """Begin a stream."""
        usage = self._usage if self._request.counts_on else None
        ids = self._amend if self._request.return_token_ids else None
        return _AnnotatedStream(
            self._rendering.stream(summary), usage, ids, hides_reasoning=self._request.hides_reasoning
        )

    def whole(self, answers: Sequence[Answer], summary: Summary) -> bytes:
        """The whole response."""
        response = orjson.loads(self._rendering.whole(answers, summary))
        for choice in response["choices"]:
            if self._request.return_token_ids:
                self._amend(response, choice, None)
            if self._request.hides_reasoning:
                choice["message"].pop("reasoning", None)
                choice["message"].pop("reasoning_content", None)
        self._show_prompts(response)
        return orjson.dumps(response)

    def _show_prompts(self, response: dict[str, Any]) -> None:
        """Add how likely the prompts were."""
        if not self._prompts:
            return
        written = [prompt.written() for prompt in self._prompts]
        if not self._prompt_in_choices:
            response["prompt_logprobs"] = written[0]
            return
        shown_per_prompt = len(response["choices"]) // len(written)  # fewer than were generated, maybe
        for choice in response["choices"]:
            choice["prompt_logprobs"] = written[choice["index"] // shown_per_prompt]

    def _amend(self, response: dict[str, Any], choice: dict[str, Any], told: int | None) -> int:
        """Add the token ids behind the first `told`, and the prompt's where none of the choice were told yet.

        Returns:
            How many are told now.
        """
        planned = self._choices[choice["index"]]
        said = planned.choice.token_ids
        if told is None and self._prompt_in_choices:
            choice["prompt_token_ids"] = planned.request.token_ids.tolist()
        elif not self._prompt_shown and not self._prompt_in_choices:
            response["prompt_token_ids"] = planned.request.token_ids.tolist()
            self._prompt_shown = True
        choice["token_ids"] = said[told or 0 :]
        return len(said)

    def _usage(self) -> tuple[int, int]:
        """Tokens of the prompts and of the answers so far."""
        prompts = sum(one.choice.prompt_tokens for one in self._choices[:: self._choices_per_prompt])
        return prompts, sum(one.choice.completion_tokens for one in self._choices)


class _AnnotatedStream:
    """Amends each chunk of a stream.

    Args:
        writer: of the stream.
        usage: tokens of the prompts and of the answers so far; None to leave them out.
        amend: adds the token ids of a choice, as `_Annotated` does; None to leave them out.
        hides_reasoning: thinking is left out.
    """

    def __init__(
        self,
        writer: StreamWriter,
        usage: Callable[[], tuple[int, int]] | None,
        amend: Callable[[dict[str, Any], dict[str, Any], int | None], int] | None,
        *,
        hides_reasoning: bool,
    ) -> None:
        self.keep_alive = writer.keep_alive
        self._writer = writer
        self._usage = usage
        self._amend = amend
        self._hides_reasoning = hides_reasoning
        self._told: dict[int, int] = {}
        self._said = 0

    def event(self, index: int, event: Event) -> bytes:
        """The chunks for one event."""
        if self._hides_reasoning and isinstance(event, Reasoning):
            return b""
        written = self._writer.event(index, event)
        if not written or (self._amend is None and self._usage is None):
            return written
        *before, last = written.split(b"\n\n")[:-1]
        # One that says the role may come before the one that the event's tokens made.
        parts = [self._amended(index, chunk, has_event=False) for chunk in before]
        return b"".join([*parts, self._amended(index, last, has_event=True)])

    def end(self) -> bytes:
        """What to send once all choices have ended."""
        return self._writer.end()

    def broken_off(self, error: ApiError) -> bytes:
        """What to send when an error ends the response."""
        return self._writer.broken_off(error)

    def _amended(self, index: int, chunk: bytes, *, has_event: bool) -> bytes:
        response = orjson.loads(chunk.removeprefix(_DATA))
        if self._amend is not None:
            told = self._told.get(index)
            told_now = self._amend(response, response["choices"][0], told)
            if not has_event:
                response["choices"][0]["token_ids"] = []
                told_now = told or 0
            self._told[index] = told_now
        if self._usage is not None:
            prompt_tokens, said = self._usage()
            self._said = said if has_event else self._said
            response["usage"] = {
                "prompt_tokens": prompt_tokens,
                "completion_tokens": self._said,
                "total_tokens": prompt_tokens + self._said,
            }
        return _DATA + orjson.dumps(response) + b"\n\n"
