"""A step under way, on the device's own time.

CUDA   work is queued by `DeviceStep` and returns at once; `result` waits for it
CPU    `DeviceStep` computes when it is made; `ThreadedStep` does the same in the runner's one thread, so
       that the scheduler goes on meanwhile
"""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import Executor, Future
from typing import TYPE_CHECKING

from rhizome_engine.batch import Batch, StepOutput, TokenMasks
from rhizome_engine.sampling.sampler import Sampled

if TYPE_CHECKING:
    from rhizome_engine.runner.model_runner import ModelRunner


class DeviceStep:
    """A step that runs where it is called.

    Args:
        runner: computes.
        batch: what to compute.
    """

    def __init__(self, runner: ModelRunner, batch: Batch) -> None:
        self._runner = runner
        self._batch = batch
        self._hidden = runner.hidden_states(batch)
        # Here, in the order of steps: the next one may be launched before this one's result is read.
        self._vectors = runner.pool(self._hidden, batch) if batch.pooled else None
        self._sampled: Sampled | None = None

    def sample(self, masks: TokenMasks | None, /) -> None:
        """Choose tokens."""
        if len(self._batch.sampling):
            self._sampled = self._runner.sample(self._hidden, self._batch, masks)

    def result(self) -> StepOutput:
        """Wait for the tokens."""
        token_ids, logprobs = ([], []) if self._sampled is None else self._sampled.to_host()
        scores = self._runner.score_prompts(self._hidden, self._batch) if self._batch.prompt_scores else []
        vectors = [] if self._vectors is None else list(self._vectors.cpu().numpy())
        return StepOutput(token_ids, logprobs, scores, vectors)


class ThreadedStep:
    """A step that runs in another thread.

    Args:
        thread: runs one thing after the other, for all steps.
        launch: makes the step, there.
    """

    def __init__(self, thread: Executor, launch: Callable[[], DeviceStep]) -> None:
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
