"""What the engine core needs of a model runner."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

from rhizome_engine.batch import Batch, StepOutput, TokenMasks


@dataclass(slots=True)
class StepCounts:
    """How steps were computed since the runner was made.

    Attributes:
        replayed: steps that replayed a recording.
        eager: steps whose kernels were launched one by one.
        recordings: recordings that were made.
        recording_s: seconds that took.
    """

    replayed: int = 0
    eager: int = 0
    recordings: int = 0
    recording_s: float = 0.0


class RunnerConfig(Protocol):
    """What the core has to know of a model."""

    @property
    def vocab_size(self) -> int:
        """Token ids are below this."""

    @property
    def max_position_embeddings(self) -> int:
        """The model's context window in tokens."""


class LaunchedStep(Protocol):
    """A step under way."""

    def sample(self, masks: TokenMasks | None, /) -> None:
        """Let tokens be chosen, once per step; what they may be was found out while the model ran."""

    def result(self) -> StepOutput:
        """Wait for the tokens."""


class Runner(Protocol):
    """What computes steps; `ModelRunner`, or a test's."""

    @property
    def config(self) -> RunnerConfig:
        """The model's limits."""

    @property
    def num_pages(self) -> int:
        """Pages of the KV pool."""

    @property
    def page_size(self) -> int:
        """Tokens per page."""

    @property
    def counts(self) -> StepCounts:
        """How steps were computed so far."""

    def launch(self, batch: Batch, /) -> LaunchedStep:
        """Begin a step; steps are computed in the order of their launch."""

    def use_idle_time(self) -> bool:
        """Do a piece of what makes later steps faster, while nothing is under way; whether more is left."""
