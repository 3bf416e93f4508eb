"""One token per row, in a way that can be recorded: no shape or launch follows from the rows' settings."""

from __future__ import annotations

import torch
from torch import Tensor

from rhizome_engine.batch import NO_TOKEN
from rhizome_engine.kernels.triton.runtime import why_not
from rhizome_engine.sampling.device_sampling import DeviceMasks, DeviceSampling
from rhizome_engine.sampling.draw import DrawSettings, draw_filtered
from rhizome_engine.sampling.logit_edits import mask_logits, penalise
from rhizome_engine.sampling.row_blocks import argmax
from rhizome_engine.sampling.token_table import TokenTable

__all__ = ["DeviceMasks", "DeviceSampling", "choose_tokens"]


def choose_tokens(
    logits: Tensor,
    settings: DeviceSampling,
    table: TokenTable,
    masks: DeviceMasks | None = None,
    *,
    penalties: bool = True,
) -> Tensor:
    """Choose one token per row and keep it in the table; nothing waits for a GPU.

    A row's token depends on its logits, its settings, its seed and its position only, and is the one that
    `sampler.sample` draws for them.

    Args:
        logits: [n, vocab_size], float32, or bfloat16 that is computed with as float32; float32 logits of rows
            with penalties are changed.
        settings: of the rows. A row whose slot is negative is padding.
        table: takes the tokens, and holds the history of rows with penalties.
        masks: tokens that may be chosen in some rows.
        penalties: whether any row may have some; without, that costs nothing.

    Returns:
        [n] int64 on the device, `NO_TOKEN` where nothing may be chosen and in padding rows.
    """
    if penalties and logits.dtype != torch.float32:
        logits = logits.float()
    if why_not(logits.device) is not None:
        return _choose_in_torch(logits.float(), settings, table, masks, penalties=penalties)
    from rhizome_engine.sampling.triton.choose import choose_edited
    from rhizome_engine.sampling.triton.penalties import penalise as penalise_in_place

    if penalties:
        penalise_in_place(logits, settings, table)
    return choose_edited(logits, settings, table, masks)


def _choose_in_torch(
    logits: Tensor, settings: DeviceSampling, table: TokenTable, masks: DeviceMasks | None, *, penalties: bool
) -> Tensor:
    """Do the same with `draw` and `logit_edits`: every row is treated as if it had all settings."""
    if penalties:
        # On a GPU nobody may ask how long the histories are.
        on_cpu = logits.device.type == "cpu" and len(logits)
        longest = int(settings.positions.max()) if on_cpu else table.tokens.shape[1]
        penalise(logits, _histories(table, settings, longest), _penalty_settings(settings), counting=True)
    if masks is not None:
        masked = masks.bits.index_select(0, masks.mask_of.clamp(min=0))
        masked = masked.where(masks.mask_of[:, None] >= 0, -1)
        logits = logits.clone()
        mask_logits(logits, torch.arange(len(logits), device=logits.device), masked.view(torch.uint8))
    largest, best = argmax(logits)
    greedy = best.where(largest.isfinite(), NO_TOKEN)
    columns = (getattr(settings, name)[:, None] for name in DrawSettings._fields)
    drawn = draw_filtered(logits, DrawSettings(*columns), sync_free=logits.device.type != "cpu")
    tokens = drawn.tokens.where(drawn.valid, NO_TOKEN)
    tokens = tokens.where(settings.temperature > 0, greedy).where(settings.slots >= 0, NO_TOKEN)
    table.store(settings.slots.clamp(min=-1), settings.positions, tokens)
    return tokens


def _histories(table: TokenTable, settings: DeviceSampling, longest: int) -> Tensor:
    """Return [n, longest] int64 tokens of the rows' slots; of some slot for padding rows."""
    return table.tokens[settings.slots.clamp(min=0), : max(longest, 1)].long()


def _penalty_settings(settings: DeviceSampling) -> dict[str, Tensor]:
    return {
        "rows": torch.arange(len(settings.slots), device=settings.slots.device),
        "positions": settings.positions,
        "num_prompt": settings.num_prompt,
        "repetition": settings.repetition_penalty[:, None],
        "frequency": settings.frequency_penalty[:, None],
        "presence": settings.presence_penalty[:, None],
    }
