"""Translation of ids of genes, against its twin in NumPy."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import twins
from budget import examples, sample
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from scdl.kernels import vocabulary


@pytest.mark.parametrize("dtype", sample(["u4", "u1", "u2", "u8"], 1))
@given(st.data())
@settings(max_examples=examples(100), deadline=None)
def test_translate(dtype: str, data: st.DataObject) -> None:
    lengths = data.draw(hnp.arrays(np.int64, st.integers(0, 6), elements=st.integers(0, 5)))
    indptr = np.concatenate([[0], np.cumsum(lengths)])
    n = int(indptr[-1])
    any_id = st.integers(-2, 9) | st.integers(-(1 << 63), (1 << 63) - 1)
    ids = data.draw(hnp.arrays(np.int64, n, elements=any_id))
    values = data.draw(hnp.arrays(dtype, n))
    places = data.draw(hnp.arrays(np.int32, st.integers(0, 8), elements=st.integers(-1, 5)))
    results: list[Any] = []
    for function in (vocabulary.translate, twins.translate):
        offsets, columns, out = indptr.copy(), np.zeros(n, np.uint32), np.zeros(n, dtype)
        kept = function(ids, values, offsets, places, columns, out)
        results.append([kept, *(a.tolist() for a in (offsets, columns[:kept], out[:kept]))])
    assert results[0] == results[1]
