"""Pinning as a caller sees it: the errors of `kvcache.pins` in the contract's terms."""

from __future__ import annotations

import grpc
import numpy as np
from numpy.typing import ArrayLike

from rhizome_engine.kvcache.pins import NothingCachedError, Pin, PinBudgetError, PinnedPrefixes
from rhizome_transport.errors import EngineError


def pin_prefix(pins: PinnedPrefixes, namespace: str, token_ids: ArrayLike, ttl_s: float | None) -> Pin:
    """Keep what the cache holds of a prefix from eviction.

    Raises:
        EngineError: the pins would exceed their budget, or nothing of the prefix is cached.
    """
    try:
        return pins.pin(namespace, np.asarray(token_ids, np.int32), ttl_s)
    except PinBudgetError as error:
        raise EngineError(grpc.StatusCode.RESOURCE_EXHAUSTED, str(error), reason="PIN_BUDGET") from error
    except NothingCachedError as error:
        raise EngineError(grpc.StatusCode.FAILED_PRECONDITION, str(error)) from error
    except ValueError as error:
        raise EngineError(grpc.StatusCode.INVALID_ARGUMENT, str(error), param="ttl") from error
