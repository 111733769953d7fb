"""Every compiled kernel equals its NumPy twin."""

from __future__ import annotations

from itertools import pairwise

import numpy as np
import pytest
import scipy.stats
import twins
from hypothesis import given
from hypothesis import strategies as st
from strategies import UNSIGNED, csr_rows

from scdl.kernels import choice as choice_kernels
from scdl.kernels import dense as dense_kernels
from scdl.kernels import order as order_kernels
from storage_backends.compute import ranges as range_checks
from storage_backends.compute import rowsort
from storage_backends.memmap import gather as gather_ranges


@given(csr_rows())
def test_row_order(rows: tuple[np.ndarray, np.ndarray, np.ndarray, int]) -> None:
    _, indices, indptr, n_vars = rows
    order, twin = np.full((2, len(indices)), -7, np.int64)
    unsorted = order_kernels.row_order(indptr, indices, n_vars, order)
    assert unsorted == twins.row_order(indptr, indices, n_vars, twin)
    np.testing.assert_array_equal(order, twin)
    pieces = [slice(a, b) for a, b in pairwise(indptr)]
    falls = [bool((np.diff(indices[piece].astype(int)) < 0).any()) for piece in pieces]
    assert unsorted == sum(falls)
    for piece in pieces:
        stable = piece.start + np.argsort(indices[piece], kind="stable")
        np.testing.assert_array_equal(order[piece], stable)


@given(csr_rows())
def test_fill_dense(rows: tuple[np.ndarray, np.ndarray, np.ndarray, int]) -> None:
    data, indices, indptr, n_vars = rows
    out, twin = np.full((2, len(indptr) - 1, n_vars), 7, data.dtype)
    whole = data.dtype.kind in "iu"
    done = dense_kernels.fill_dense(data, indices, indptr, whole, out)
    assert done == twins.fill_dense(data, indices, indptr, whole, twin)
    if done == 0:
        np.testing.assert_array_equal(out, twin)
        assert out.sum(dtype=np.float64) == data.sum(dtype=np.float64)
    else:
        assert done == dense_kernels.OVERFLOW


def test_dense_rows_have_the_sign_of_zeros() -> None:
    data, indices = np.array([-0.0, 1, -0.0, 3, -3], "f4"), np.array([0, 1, 2, 2, 1], "u1")
    for fill in (dense_kernels.fill_dense, twins.fill_dense):
        out = np.full((2, 3), 7, "f4")
        assert fill(data, indices, np.array([0, 2, 5]), False, out) == 0
        np.testing.assert_array_equal(out, [[0, 1, 0], [0, -3, 3]])
        np.testing.assert_array_equal(np.signbit(out), [[True, False, False], [False, True, False]])


@pytest.mark.parametrize("dtype", UNSIGNED)
@pytest.mark.parametrize("column", [5, 6, 200])
def test_column_out_of_range(dtype: str, column: int) -> None:
    indices = np.array([4, column], dtype)
    indptr = np.array([0, 2])
    for kernel in (order_kernels.row_order, twins.row_order):
        assert kernel(indptr, indices, 5, np.empty(2, np.int64)) == order_kernels.OUT_OF_RANGE
    for fill in (dense_kernels.fill_dense, twins.fill_dense):
        guarded = np.zeros((3, 5), "f4")
        found = fill(np.ones(2, "f4"), indices, indptr, False, guarded[1:2])
        assert found == order_kernels.OUT_OF_RANGE
        assert not guarded[[0, 2]].any(), "written outside the output"


def test_largest_unsigned_column_is_out_of_range() -> None:
    indices = np.array([2**64 - 1], np.uint64)
    order = np.empty(1, np.int64)
    assert (
        order_kernels.row_order(np.array([0, 1]), indices, 5, order) == order_kernels.OUT_OF_RANGE
    )
    out = np.zeros((1, 5), "f4")
    found = dense_kernels.fill_dense(np.ones(1, "f4"), indices, np.array([0, 1]), False, out)
    assert found == order_kernels.OUT_OF_RANGE


@given(csr_rows(), st.sampled_from([1.0, 0.3, 1e4]), st.booleans())
def test_sum_and_scale_rows(
    rows: tuple[np.ndarray, np.ndarray, np.ndarray, int], target: float, in_place: bool
) -> None:
    data, _, indptr, _ = rows
    values = data.astype(np.float64 if data.itemsize == 8 else np.float32)
    # Besides rows without a value there are rows of zeros.
    for number, (start, stop) in enumerate(pairwise(indptr)):
        if number % 3 == 1:
            values[start:stop] = 0
    out = values.copy() if in_place else np.full_like(values, 7)
    twin = np.full_like(values, 7)
    totals, totals_twin = np.empty((2, len(indptr) - 1))
    dense_kernels.sum_rows(values, indptr, totals)
    twins.sum_rows(values, indptr, totals_twin)
    np.testing.assert_allclose(totals, totals_twin, rtol=1e-6)
    dense_kernels.scale_rows(out if in_place else values, indptr, totals, target, out)
    twins.scale_rows(values, indptr, totals, target, twin)
    np.testing.assert_allclose(out, twin, rtol=1e-6)
    for start, stop in pairwise(indptr):
        total = values[start:stop].sum()
        assert out[start:stop].sum() == pytest.approx(target if total else 0, rel=1e-5)


def test_normalized_rows_that_sum_to_zero_stay() -> None:
    values = np.array([3, -3, 1, 1], "f4")
    for scale in (dense_kernels.scale_rows, twins.scale_rows):
        out = np.empty_like(values)
        scale(values, np.array([0, 2, 2, 4]), np.array([0.0, 0.0, 2.0]), 10.0, out)
        assert out.tolist() == [3, -3, 5, 5]


@given(csr_rows(), st.integers(1, 50), st.booleans())
def test_fill_padded(
    rows: tuple[np.ndarray, np.ndarray, np.ndarray, int], length: int, by_value: bool
) -> None:
    data, indices, indptr, n_vars = rows
    # Few values, so that many are equal.
    data %= 5
    keys = -data.astype(np.float64) if by_value else data[:0].astype(np.float64)
    n = len(indptr) - 1
    found = []
    for fill in (dense_kernels.fill_padded, twins.fill_padded):
        values, genes = np.zeros((n, length), data.dtype), np.full((n, length), n_vars)
        fill(data, indices, indptr, keys, values, genes)
        found.append((values, genes))
    for one, twin in zip(*found, strict=True):
        np.testing.assert_array_equal(one, twin)
    for i, (start, stop) in enumerate(pairwise(indptr)):
        pairs = list(zip(data[start:stop].tolist(), indices[start:stop].tolist(), strict=True))
        if by_value:
            pairs.sort(key=lambda pair: -pair[0])
        pairs += [(0, n_vars)] * length
        assert list(zip(values[i].tolist(), genes[i].tolist(), strict=True)) == pairs[:length]


@given(csr_rows(), st.integers(0, 50), st.data())
def test_take_columns(
    rows: tuple[np.ndarray, np.ndarray, np.ndarray, int], length: int, draw: st.DataObject
) -> None:
    data, indices, indptr, n_vars = rows
    shape = len(indptr) - 1, length
    seed = draw.draw(st.integers(0, 2**32 - 1))
    columns = np.random.default_rng(seed).integers(0, n_vars + 1, shape)
    found = []
    for take in (dense_kernels.take_columns, twins.take_columns):
        found.append(np.full(shape, 7, data.dtype))
        take(data, indices, indptr, n_vars, columns, found[-1])
    np.testing.assert_array_equal(*found)
    for i, (start, stop) in enumerate(pairwise(indptr)):
        stored = dict(zip(indices[start:stop].tolist(), data[start:stop].tolist(), strict=True))
        assert found[0][i].tolist() == [stored.get(column, 0) for column in columns[i].tolist()]


@given(csr_rows(), st.integers(1, 50), st.integers(0, 2**64 - 1))
def test_sample_rows(
    rows: tuple[np.ndarray, np.ndarray, np.ndarray, int], most: int, key: int
) -> None:
    indptr = rows[2]
    kept = np.minimum(np.diff(indptr), most)
    found = []
    for sample in (choice_kernels.sample_rows, twins.sample_rows):
        chosen, offsets = np.full(kept.sum(), -1), np.full(len(indptr), -1)
        sample(indptr, most, np.uint64(key), chosen, offsets)
        found.append((chosen, offsets))
    for one, twin in zip(*found, strict=True):
        np.testing.assert_array_equal(one, twin)
    np.testing.assert_array_equal(offsets, np.concatenate([[0], np.cumsum(kept)]))
    for i, (start, stop) in enumerate(pairwise(indptr)):
        part = chosen[offsets[i] : offsets[i + 1]]
        assert (np.diff(part) > 0).all()
        assert ((start <= part) & (part < stop)).all()


def test_samples_of_rows_are_equally_likely() -> None:
    """Entries, and pairs of entries, of many rows of six of which three are kept."""
    n = 20_000
    chosen, offsets = np.empty(3 * n, np.int64), np.empty(n + 1, np.int64)
    choice_kernels.sample_rows(np.arange(n + 1) * 6, 3, np.uint64(5), chosen, offsets)
    triples = chosen.reshape(n, 3) % 6
    _, counts = np.unique(triples, axis=0, return_counts=True)
    assert len(counts) == 20
    assert scipy.stats.chisquare(counts).pvalue > 1e-4


ITEMS = [
    (np.dtype(name), shape)
    for name, shape in [
        ("u1", ()),
        ("<u2", ()),
        ("<f2", ()),
        ("<f4", ()),
        ("<i8", ()),
        ("<f8", ()),
        ("<f4", (3,)),
        ("u1", (2, 2)),
        ("<f4", (0,)),
    ]
]


@given(
    st.sampled_from(ITEMS),
    st.lists(st.tuples(st.integers(0, 30), st.integers(0, 30)).map(sorted), max_size=12),
)
def test_gather(item: tuple[np.dtype, tuple[int, ...]], ranges: list[list[int]]) -> None:
    dtype, shape = item
    source = np.random.default_rng(0).integers(0, 100, (30, *shape)).astype(dtype)
    source.flags.writeable = False
    starts = np.array([start for start, _ in ranges], np.int64)
    stops = np.array([stop for _, stop in ranges], np.int64)
    expected = np.concatenate([source[:0], *(source[a:b] for a, b in ranges)])
    for gather in (gather_ranges.gather_ranges, twins.gather_ranges):
        out = np.full_like(expected, 111)
        gather(source, starts, stops, out)
        np.testing.assert_array_equal(out, expected)
        if dtype.kind == "u":
            wide = np.full(expected.shape, -1, np.int32)
            gather(source, starts, stops, wide)
            np.testing.assert_array_equal(wide, expected)


@given(
    st.lists(st.tuples(st.integers(-2, 12), st.integers(-2, 12)), max_size=6),
    st.integers(0, 10),
)
def test_total_length(ranges: list[tuple[int, int]], limit: int) -> None:
    starts, stops = np.array(ranges, np.int64).reshape(-1, 2).T
    found = range_checks.total_length(starts, stops, limit)
    assert found == twins.total_length(starts, stops, limit)
    bad = [not 0 <= start <= stop <= limit for start, stop in ranges]
    assert found == (-1 - bad.index(True) if any(bad) else sum(b - a for a, b in ranges))


@given(csr_rows(), st.data())
def test_misplaced(
    rows: tuple[np.ndarray, np.ndarray, np.ndarray, int], data: st.DataObject
) -> None:
    _, indices, indptr, n_vars = rows
    indices = indices.astype(data.draw(st.sampled_from([indices.dtype, "i4", "i8"])))
    below = data.draw(st.sampled_from([n_vars, n_vars // 2]))
    for rises in (False, True):
        found = order_kernels.misplaced(indices, indptr, below, rises)
        assert found == twins.misplaced(indices, indptr, below, rises)
        good = []
        for start, stop in pairwise(indptr):
            ids = indices[start:stop].tolist()
            good += [i < below and not (rises and k and i <= ids[k - 1]) for k, i in enumerate(ids)]
        assert found == (good.index(False) if False in good else -1)


@pytest.mark.parametrize("wrong", [-1, -(2**63)])
def test_negative_ids_are_misplaced(wrong: int) -> None:
    for dtype in ("i8", "u8"):
        ids = np.array([3, wrong, 5], "i8").astype(dtype)
        for kernel in (order_kernels.misplaced, twins.misplaced):
            assert kernel(ids, np.array([0, 3]), 10, False) == 1


@pytest.mark.parametrize("dtype", ["i1", "i2", "i4", "i8", "u1", "u2", "u4", "u8"])
@pytest.mark.parametrize("values", ["i2", "f2", "f8"])
def test_negative_ids_are_out_of_range(dtype: str, values: str) -> None:
    """Rows are sorted as bits, of which those of a negative id could be those of a larger one."""
    n_columns, ids = 300, np.array([7, 2, 5, 9, 1], dtype)
    data = np.arange(-2, 3).astype(values)
    indptr = np.array([0, 3, 5])
    out = np.empty_like(data), np.empty(len(ids), np.int64)
    assert rowsort.sort_rows(data, ids, indptr, n_columns, *out) == 2
    assert out[1].tolist() == [2, 5, 7, 1, 9]
    np.testing.assert_array_equal(out[0], data[[1, 2, 0, 4, 3]])
    if np.issubdtype(dtype, np.signedinteger):
        for damaged in ([-1, 2, 5, 1, 9], [2, 5, -3, 1, 9], [7, 2, -1, 9, 1]):
            wrong = np.array(damaged, dtype)
            found = rowsort.sort_rows(data, wrong, indptr, n_columns, *out)
            assert found == rowsort.OUT_OF_RANGE
