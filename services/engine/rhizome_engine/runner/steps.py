"""A step under way, on the device's own time.

CUDA   work is queued when a step is made, which returns at once; `result` waits for it
CPU    a step is computed when it is made; `ThreadedStep` does the same in the runner's one thread, so that
       the scheduler goes on meanwhile
"""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import Executor, Future
from typing import TYPE_CHECKING

from torch import Tensor

from rhizome_engine.batch import Batch, StepOutput, TokenMasks
from rhizome_engine.core.runner_protocol import LaunchedStep
from rhizome_engine.runner.result_buffers import PendingTokens
from rhizome_engine.sampling.sampler import Sampled

if TYPE_CHECKING:
    from rhizome_engine.runner.step_computer import StepComputer


class DeviceStep:
    """A step whose model has run, or was told to.

    Args:
        computer: computes what follows.
        batch: the step.
        hidden: [num_tokens, hidden_size], until the next step.
    """

    def __init__(self, computer: StepComputer, batch: Batch, hidden: Tensor) -> None:
        self._computer = computer
        self._batch = batch
        self._hidden = hidden
        # Here, in the order of steps: the next one may be launched before this one's result is read.
        self._vectors = computer.pool(hidden, batch) if batch.pooled else None
        self._sampled: Sampled | None = None

    def sample(self, masks: TokenMasks | None, /) -> None:
        """Choose tokens."""
        if len(self._batch.sampling):
            self._sampled = self._computer.sample(self._hidden, self._batch, masks)

    def result(self) -> StepOutput:
        """Wait for the tokens."""
        token_ids, logprobs = ([], []) if self._sampled is None else self._sampled.to_host()
        scores = self._computer.score_prompts(self._hidden, self._batch) if self._batch.prompt_scores else []
        vectors = [] if self._vectors is None else list(self._vectors.cpu().numpy())
        return StepOutput(token_ids, logprobs, scores, vectors)


class ReplayedStep:
    """A step that was replayed whole.

    Args:
        tokens: what it chose.
    """

    def __init__(self, tokens: PendingTokens) -> None:
        self._tokens = tokens

    def sample(self, masks: TokenMasks | None, /) -> None:
        """Tokens were chosen already.

        Raises:
            ValueError: some were not to be chosen; the batch has to say that there will be masks.
        """
        if masks is not None:
            raise ValueError("masks for a step whose batch said that no row is constrained")

    def result(self) -> StepOutput:
        """Wait for the tokens."""
        token_ids = self._tokens.read()
        return StepOutput(token_ids, [None] * len(token_ids))


class ThreadedStep:
    """A step that runs in another thread.

    Args:
        thread: runs one thing after the other, for all steps.
        launch: makes the step, there.
    """

    def __init__(self, thread: Executor, launch: Callable[[], LaunchedStep]) -> None:
        self._thread = thread
        self._step = thread.submit(launch)
        self._output: Future[StepOutput] | None = None

    def sample(self, masks: TokenMasks | None, /) -> None:
        """Choose tokens once the model has run."""

        def finish() -> StepOutput:
            step = self._step.result()
            step.sample(masks)
            return step.result()

        self._output = self._thread.submit(finish)

    def result(self) -> StepOutput:
        """Wait for the tokens."""
        assert self._output is not None, "not sampled"
        return self._output.result()
