import numpy as np
from numpy.typing import NDArray

def extend(
    ids: NDArray[np.uint32],
    multipliers: NDArray[np.uint64],
    parent_hash: int,
    position: int,
    hashes: NDArray[np.uint64],
    /,
) -> None: ...
def choose(hashes: NDArray[np.uint64], mask: int, /) -> tuple[list[int], list[int]]: ...
