"""Rows sampled by kernels and by PyTorch's operations; on a GPU if there is one, else interpreted."""

from __future__ import annotations

import numpy as np
import torch
from tests.engine.sampling.reference import bits_of

from rhizome_engine.batch import TokenMasks
from rhizome_engine.sampling.device_sampling import DeviceSampling
from rhizome_engine.sampling.rows import SamplingRows
from rhizome_engine.sampling.sampler import sample
from rhizome_engine.sampling.staging import to_device
from rhizome_engine.sampling.token_table import TokenTable

DEVICE = torch.device("cuda" if torch.cuda.is_available() else "cpu")
MAX_CONTEXT = 64


class Scene:
    """Rows of a batch with their histories, as often as they are to be sampled.

    Args:
        rows: see `reference.Row`.
        vocab_size: of all of them.
        slots: of the rows, in order; 0 and up where absent.
    """

    def __init__(self, rows, vocab_size, slots=None):
        self.rows, self.vocab_size = rows, vocab_size
        self.slots = list(range(len(rows))) if slots is None else slots
        self.max_rows = max(self.slots, default=0) + 1
        self.known = [len(row.prompt + row.output) for row in rows]
        settings = SamplingRows(self.max_rows, vocab_size)
        for slot, row in zip(self.slots, rows, strict=True):
            settings.set(slot, row.params, row.seed, len(row.prompt), row.stop_ids, row.min_tokens)
        numbers = (np.array(values, np.int64) for values in (range(len(rows)), self.slots, self.known))
        self.batch = settings.build(*numbers)

    def table(self):
        """A table with the rows' tokens."""
        table = TokenTable(self.max_rows, MAX_CONTEXT, DEVICE)
        for slot, row in zip(self.slots, self.rows, strict=True):
            table.load(slot, np.array(row.prompt + row.output, np.int32))
        return table

    def masks(self):
        """What grammars allow, or None."""
        masked = [index for index, row in enumerate(self.rows) if row.grammar is not None]
        if not masked:
            return None
        bits = np.stack([bits_of(self.rows[index].grammar, self.vocab_size) for index in masked])
        return TokenMasks(np.array(masked, np.int64), bits)

    def settings(self):
        """The rows' settings on the device."""
        return DeviceSampling.of(to_device(DeviceSampling.arrays(self.batch), DEVICE))

    def sample(self, logits, *, fused):
        """Return tokens, log probabilities and what the table holds then."""
        table = self.table()
        tokens, logprobs = sample(
            logits.to(DEVICE, copy=True), self.batch, table, self.masks(), fused=fused
        ).to_host()
        if table._counters is not None:
            assert not table._counters.any()
        return tokens, logprobs, table.tokens.tolist()


def assert_same(logits, rows, slots=None):
    """Kernels and operations choose and store the same; returns the tokens."""
    scene = Scene(rows, logits.shape[1], slots)
    fused, plain = (scene.sample(logits, fused=fused) for fused in (True, False))
    assert fused == plain
    return fused[0]
