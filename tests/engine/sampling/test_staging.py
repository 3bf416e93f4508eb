"""Arrays travel to the device and back."""

from __future__ import annotations

import numpy as np
import torch
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays

from rhizome_engine.sampling.staging import packed_copy, to_device, to_host

CPU = torch.device("cpu")
dtypes = st.sampled_from([np.int64, np.int32, np.uint8, np.float32, np.bool_])


@given(st.lists(arrays.arrays(dtypes, arrays.array_shapes(max_dims=2, min_side=0, max_side=9)), max_size=5))
def test_a_packed_copy_gives_back_every_array(given_arrays):
    named = {str(index): array for index, array in enumerate(given_arrays)}
    copied = packed_copy(named, CPU)
    for name, array in named.items():
        assert copied[name].numpy().dtype == array.dtype
        assert copied[name].shape == array.shape
        assert np.array_equal(copied[name].numpy(), array, equal_nan=array.dtype == np.float32)


def test_on_a_cpu_nothing_is_copied_and_unsigned_bits_are_kept():
    seeds = np.array([1, 2**64 - 1], np.uint64)
    staged = to_device({"seeds": seeds}, CPU)["seeds"]
    assert staged.tolist() == [1, -1]
    seeds[0] = 7
    assert staged.tolist() == [7, -1]
    assert to_host(staged) is staged
