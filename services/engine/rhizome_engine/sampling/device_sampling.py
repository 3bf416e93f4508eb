"""The settings of a step's rows as they lie on the device, in tensors whose shapes never follow from them."""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from rhizome_engine.batch import SamplingBatch, TokenMasks


class DeviceSampling(NamedTuple):
    """Settings of n rows, each [n]; see `SamplingBatch` for what they mean.

    Attributes:
        slots: int64, negative for a padding row: nothing is stored for it.
        positions: int64.
        num_prompt: int64.
        seeds: int64 with the bits of the unsigned seed.
        temperature: float32.
        top_p: float32.
        min_p: float32.
        repetition_penalty: float32.
        frequency_penalty: float32.
        presence_penalty: float32.
        top_k: int64.
    """

    slots: Tensor
    positions: Tensor
    num_prompt: Tensor
    seeds: Tensor
    temperature: Tensor
    top_p: Tensor
    min_p: Tensor
    repetition_penalty: Tensor
    frequency_penalty: Tensor
    presence_penalty: Tensor
    top_k: Tensor

    @classmethod
    def arrays(cls, batch: SamplingBatch) -> dict[str, NDArray[Any]]:
        """Return a batch's settings by name, to be copied to the device."""
        return {f"settings.{name}": getattr(batch, name) for name in cls._fields}

    @classmethod
    def of(cls, staged: dict[str, Tensor]) -> DeviceSampling:
        """Pick out what `arrays` named."""
        return cls(*(staged[f"settings.{name}"] for name in cls._fields))


class DeviceMasks(NamedTuple):
    """Tokens that may be chosen in some rows.

    Attributes:
        mask_of: [n] int64, which of the masks a row has, -1 for none.
        bits: [k, words] int32, see `TokenMasks`.
    """

    mask_of: Tensor
    bits: Tensor

    @classmethod
    def arrays(cls, masks: TokenMasks, num_rows: int) -> dict[str, NDArray[Any]]:
        """Return the masks of some of `num_rows` rows by name, to be copied to the device."""
        mask_of = np.full(num_rows, -1, np.int64)
        mask_of[masks.rows] = np.arange(len(masks.rows))
        return {"masks.mask_of": mask_of, "masks.bits": masks.bits}

    @classmethod
    def of(cls, staged: dict[str, Tensor]) -> DeviceMasks:
        """Pick out what `arrays` named."""
        return cls(staged["masks.mask_of"], staged["masks.bits"])
