"""How much memory recorded steps take beside the workspace of those that are not: a bound, term by term.

2 x workspace of the largest recorded step     graphs share one pool, which the largest fills; what runs
                                               before a recording fills as much on the stream of its own
hidden states that recordings hold             one for each shape
page table, token table, token counters        one row each per slot
graphs                                         so many times what the driver keeps for one
"""

from __future__ import annotations

from dataclasses import dataclass

from rhizome_engine.checkpoint.model_config import ModelConfig
from rhizome_engine.runner.graphs import step_shapes
from rhizome_engine.runner.static_step import End
from rhizome_engine.runner.workspace import Workspace

_GRAPH_BYTES = 4 * 2**20
"""Of the driver, for a few hundred kernels and their arguments; an estimate."""


@dataclass(frozen=True, slots=True)
class RecordedMemory:
    """What the bound depends on.

    Attributes:
        config: of the model.
        num_tokens: of the largest step.
        num_rows: of the largest step.
        num_slots: requests that hold pages at once.
        page_size: tokens per page.
        unpacked: see `Workspace`.
    """

    config: ModelConfig
    num_tokens: int
    num_rows: int
    num_slots: int
    page_size: int
    unpacked: int = 0

    def num_bytes(self, context: int) -> int:
        """Return a bound for contexts of at most so many tokens."""
        shapes = step_shapes(self.num_rows, self.num_tokens)
        tokens, rows = max(shape.num_tokens for shape in shapes), self.num_rows
        largest = Workspace(self.config, tokens, rows, kv_element=4, gathers=False, unpacked=self.unpacked)
        held = sum(shape.num_tokens for shape in shapes) * 4 * self.config.hidden_size
        pages = 4 * (self.num_slots + 1) * -(-context // self.page_size)
        rows_of_tokens = 4 * (self.num_slots + 1) * (context + self.config.vocab_size)
        graphs = len(shapes) * len(End) * _GRAPH_BYTES
        return 2 * largest.num_bytes(context) + held + pages + rows_of_tokens + graphs
