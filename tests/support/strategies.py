"""What hypothesis draws."""

from __future__ import annotations

from itertools import product

import numpy as np
from budget import WHOLE, sample
from hypothesis import strategies as st

UNSIGNED = ["u1", "u2", "u4", "u8"]
VALUES = ["f4", "f8", "u1", "u8"]
#: Types of values and column ids. Kernels are compiled for each pair, which takes most of the time.
TYPES = list(product(VALUES, UNSIGNED) if WHOLE else sample(zip(VALUES, UNSIGNED, strict=True), 2))


@st.composite
def csr_rows(draw: st.DrawFn) -> tuple[np.ndarray, np.ndarray, np.ndarray, int]:
    """Data, indices (any order, repeats), indptr and number of genes, up to several words of 64."""
    rng = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    n_vars = draw(st.sampled_from([1, 2, 63, 64, 65, 128, 200]))
    counts = draw(st.lists(st.integers(0, 40), max_size=6))
    indptr = np.append(0, np.cumsum(counts)).astype(np.int64)
    kind = draw(st.sampled_from(["sorted", "unsorted", "repeated"]))
    rows = [
        rng.integers(0, n_vars, n)
        if kind == "repeated"
        else rng.permutation(n_vars)[: min(n, n_vars)]
        for n in counts
    ]
    if kind != "repeated":
        indptr = np.append(0, np.cumsum([len(row) for row in rows])).astype(np.int64)
    if kind == "sorted":
        rows = [np.sort(row) for row in rows]
    values, ids = draw(st.sampled_from(TYPES))
    indices = np.concatenate([np.empty(0, int), *rows]).astype(ids)
    data = rng.integers(1, 50, len(indices)).astype(values)
    return data, indices, indptr, n_vars
