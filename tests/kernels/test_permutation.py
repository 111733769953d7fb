"""The compiled permutation is that of NumPy, and a permutation."""

from __future__ import annotations

import numpy as np
import twins
from hypothesis import given
from hypothesis import strategies as st

from scdl.kernels import hashing


@given(st.integers(1, 2**50), st.integers(0, 2**64 - 1), st.data())
def test_as_in_numpy(n: int, key: int, data: st.DataObject) -> None:
    at = np.array(data.draw(st.lists(st.integers(0, n - 1))), np.int64)
    np.testing.assert_array_equal(hashing.permuted(at, n, key), twins.permuted(at, n, key))


@given(st.integers(1, 3_000), st.integers(0, 2**64 - 1))
def test_each_position_once(n: int, key: int) -> None:
    assert sorted(hashing.permuted(np.arange(n), n, key)) == list(range(n))
