"""Copying and mapping rows by address: compiled code against its twins in NumPy."""

from __future__ import annotations

import subprocess
import sys
from typing import Any

import numba
import numpy as np
import pytest
import twins
from budget import sample
from hypothesis import given
from hypothesis import strategies as st

from scdl.kernels import genes as kernels
from scdl.kernels import lanes as _lanes
from scdl.kernels import rows as row_kernels

ID_DTYPES = ["u1", "u2", "u4", "u8", "i4"]


@st.composite
def problems(draw: st.DrawFn) -> dict[str, Any]:
    """Rows in two archives, and tables of two gene spaces."""
    rng = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    widths = draw(st.lists(st.integers(1, 200), min_size=2, max_size=2))
    n_columns = draw(st.integers(1, 150))
    in_order = draw(st.booleans())
    tables = []
    for width in widths:
        n = int(rng.integers(0, min(width, n_columns) + 1))
        table = np.full(width, -1, np.int32)
        chosen = rng.choice(n_columns, n, replace=False)
        table[np.sort(rng.choice(width, n, replace=False))] = (
            np.sort(chosen) if in_order else chosen
        )
        tables.append(table)
    dtype = np.dtype(draw(st.sampled_from(sample(ID_DTYPES, 2))))
    offsets = np.dtype(draw(st.sampled_from(ID_DTYPES[:4])))
    archives = []
    for width in widths:
        ids = [
            rng.permutation(width)[: rng.integers(0, width + 1)] for _ in range(rng.integers(1, 5))
        ]
        lengths = np.cumsum([0, *map(len, ids)])
        if lengths[-1] > np.iinfo(offsets).max:
            offsets = np.dtype("u4")
        data = rng.integers(0, 1 << 16, int(lengths[-1])).astype("u4")
        archives.append([data, np.concatenate(ids).astype(dtype), lengths])
    for archive in archives:
        archive[2] = archive[2].astype(offsets)
    n = draw(st.integers(0, 12))
    which = rng.integers(0, 2, n)
    rows = np.array([rng.integers(0, len(archives[w][2]) - 1) for w in which], np.int64)
    return {
        "archives": archives, "which": which, "rows": rows, "dtype": dtype,
        "lookup": np.concatenate(tables), "bounds": np.cumsum([0, *map(len, tables)]),
        "n_columns": n_columns,
    }  # fmt: skip


@given(st.lists(st.integers(0, 4), min_size=1, max_size=6), st.sampled_from([1, 600]), st.data())
def test_archives_are_found(lengths: list[int], times: int, data: st.DataObject) -> None:
    """Few and many of them, which are found in different ways."""
    lengths = lengths * times
    starts = np.cumsum([0, *lengths])
    last = int(starts[-1]) - 1
    at = np.array(data.draw(st.lists(st.integers(0, last), max_size=20)) if last >= 0 else [], int)
    results = []
    for function in (row_kernels.find_archives, twins.find_archives):
        which, rows = np.empty_like(at), np.empty_like(at)
        function(at, starts, which, rows)
        results.append((which.tolist(), rows.tolist()))
    assert results[0] == results[1]
    which, rows = results[0]
    assert [starts[w] + row for w, row in zip(which, rows, strict=True)] == at.tolist()
    assert all(row < lengths[w] for w, row in zip(which, rows, strict=True))


def locate(problem: dict[str, Any], function: Any, *, limit: int | None = None) -> Any:
    """Addresses of the rows, n x 4, and what the function returned."""
    arrays = np.array(
        [
            [
                d.ctypes.data,
                i.ctypes.data,
                o.ctypes.data,
                o.itemsize,
                len(d) if limit is None else limit,
            ]
            for d, i, o in problem["archives"]
        ]
    )
    which, rows = problem["which"], problem["rows"]
    out, indptr = np.full((len(rows), 4), -7), np.full(len(rows) + 1, -7)
    bad = function(which, rows, arrays, 4, problem["dtype"].itemsize, out, indptr)
    out[:, 3] = which
    if bad < 0:
        assert indptr.tolist() == np.cumsum([0, *out[:, 2]]).tolist()
    return out, bad


@given(problems())
def test_rows_are_located(problem: dict[str, Any]) -> None:
    found, bad = locate(problem, row_kernels.locate_rows)
    expected, bad_too = locate(problem, twins.locate_rows)
    assert bad == bad_too == -1
    np.testing.assert_array_equal(found, expected)


@given(problems())
def test_rows_behind_the_end_are_told(problem: dict[str, Any]) -> None:
    """An archive that is shorter than its offsets say."""
    bad = locate(problem, row_kernels.locate_rows, limit=3)[1]
    assert bad == locate(problem, twins.locate_rows, limit=3)[1]
    stops = [
        int(problem["archives"][w][2][r + 1])
        for w, r in zip(problem["which"], problem["rows"], strict=True)
    ]
    assert bad == next((i for i, stop in enumerate(stops) if stop > 3), -1)


@given(
    st.lists(st.integers(-1, 9), min_size=2, max_size=9),
    st.booleans(),
    st.sampled_from(["u1", "u2", "u4", "u8", "i8"]),
    st.integers(0, 9),
    st.data(),
)
def test_offsets_are_checked(
    offsets: list[int], rising: bool, dtype: str, n_values: int, data: st.DataObject
) -> None:
    """Offsets of any kind, beside an archive that is not mapped."""
    stored = np.array(sorted(offsets) if rising else offsets).astype(dtype)
    rows = np.array(data.draw(st.lists(st.integers(0, len(offsets) - 2), max_size=6)), np.int64)
    which = np.array([data.draw(st.integers(0, 1)) for _ in rows], np.int64)
    arrays = np.array([[100, 1000, stored.ctypes.data, stored.itemsize, n_values], [0] * 5])
    # The largest uint64 is negative as an offset.
    pairs = zip(*stored.astype(np.int64)[[rows, rows + 1]].tolist(), strict=True)
    ranges = [(0, 3) if w else pair for w, pair in zip(which, pairs, strict=True)]
    wrong = [
        not w and not 0 <= start <= stop <= n_values
        for w, (start, stop) in zip(which, ranges, strict=True)
    ]
    for function in (row_kernels.locate_rows, twins.locate_rows):
        out, indptr = np.full((len(rows), 4), 3), np.full(len(rows) + 1, -7)
        assert function(which, rows, arrays, 4, 2, out, indptr) == (
            wrong.index(True) if any(wrong) else -1
        )
        if not any(wrong):
            expected = [
                [3, 3, 3] if w else [100 + 4 * start, 1000 + 2 * start, stop - start]
                for w, (start, stop) in zip(which, ranges, strict=True)
            ]
            assert out[:, :3].tolist() == expected
            assert np.diff(indptr).tolist() == [stop - start for start, stop in ranges]
            assert indptr[0] == 0


@given(problems())
def test_values_of_rows_are_summed(problem: dict[str, Any]) -> None:
    rows, _ = locate(problem, row_kernels.locate_rows)
    found, twin = np.full((2, len(rows)), np.nan)
    row_kernels.sum_rows(rows, np.empty(0, "u4"), found)
    twins.sum_addressed_rows(rows, np.empty(0, "u4"), twin)
    expected = []
    for w, r in zip(problem["which"], problem["rows"], strict=True):
        values, _, offsets = problem["archives"][w]
        expected.append(float(values[int(offsets[r]) : int(offsets[r + 1])].sum(dtype=np.float64)))
    assert found.tolist() == twin.tolist() == expected


@given(problems(), st.sampled_from(sample(["i8", "u8"], 1)))
def test_rows_are_copied(problem: dict[str, Any], out_dtype: str) -> None:
    rows, _ = locate(problem, row_kernels.locate_rows)
    data, ids = [np.empty(0, "u4")], [np.empty(0, problem["dtype"])]
    for w, r in zip(problem["which"], problem["rows"], strict=True):
        values, columns, offsets = problem["archives"][w]
        part = slice(int(offsets[r]), int(offsets[r + 1]))
        data.append(values[part])
        ids.append(columns[part])
    expected, columns = np.concatenate(data), np.concatenate(ids)
    indptr = np.cumsum([0, *rows[:, 2]])
    for function in (row_kernels.copy_rows, twins.copy_rows):
        out, out_ids = np.zeros(len(expected), "u4"), np.zeros(len(expected), out_dtype)
        largest = function(rows, indptr, np.empty(0, problem["dtype"]), out, out_ids)
        np.testing.assert_array_equal(out, expected)
        np.testing.assert_array_equal(out_ids, columns)
        assert largest == columns.max(initial=0)


def mapped(problem: dict[str, Any], function: Any, *more: int) -> Any:
    """Kept lengths, values and ids, and what the function returned."""
    rows, _ = locate(problem, row_kernels.locate_rows)
    total = int(rows[:, 2].sum())
    data, ids = np.zeros(total, "u4"), np.zeros(total, np.int32)
    done = function(
        rows, problem["lookup"], problem["bounds"], np.empty(0, problem["dtype"]), data, ids, *more
    )
    kept = int(rows[:, 2].sum())
    return done, rows[:, 2].tolist(), data[:kept].tolist(), ids[:kept].tolist()


@numba.njit
def in_lanes(ids: Any, values: Any, table: Any, out_ids: Any, out: Any) -> int:
    at = row_kernels.pointer_in
    ids, values, table = at(ids, 0), at(values, 0), at(table, 0)
    return _lanes.map_lanes(ids, values, 3, table, at(out_ids, 0), at(out, 0), 2)


@numba.njit
def one_by_one(ids: Any, values: Any, table: Any, out_ids: Any, out: Any) -> int:
    at = row_kernels.pointer_in
    ids, values, table = at(ids, 0), at(values, 0), at(table, 0)
    stop = 3 + _lanes.LANES
    return kernels.map_values(ids, values, 3, stop, table, at(out_ids, 0), at(out, 0), 2)


@pytest.mark.skipif(not _lanes.IS_KNOWN, reason="the compiler is older")
@pytest.mark.parametrize("out_dtype", ["i4", "i8", "u2"])
@pytest.mark.parametrize("value_dtype", ["u1", "u2", "u4", "u8"])
@pytest.mark.parametrize("id_dtype", ["u1", "u2", "i8"])
def test_values_are_mapped_in_lanes(id_dtype: str, value_dtype: str, out_dtype: str) -> None:
    """Also where the processor has no instruction for it."""
    rng = np.random.default_rng(0)
    lanes = _lanes.LANES
    for share in (0.0, 0.1, 0.5, 0.9, 1.0):
        table = np.where(rng.random(250) < share, rng.permutation(250), -1).astype(np.int32)
        ids = rng.permutation(250)[: lanes + 3].astype(id_dtype)
        values = rng.integers(0, np.iinfo(value_dtype).max, lanes + 3, value_dtype)
        new = table[ids[3:]]
        for function in (in_lanes, one_by_one):
            # Two more on both sides, which nobody may write to.
            out, out_ids = np.full(lanes + 4, 7, value_dtype), np.full(lanes + 4, 7, out_dtype)
            kept = function(ids, values, table, out_ids, out)
            assert kept == (new >= 0).sum()
            assert out[2 : 2 + kept].tolist() == values[3:][new >= 0].tolist()
            assert out_ids[2 : 2 + kept].tolist() == new[new >= 0].tolist()
            edges = [0, 1, lanes + 2, lanes + 3]
            assert [*out[edges], *out_ids[edges]] == [7] * 8


@pytest.mark.parametrize("length", [0, 1, 15, 16, 17, 100, 5_000])
def test_rows_of_any_length_are_mapped(length: int) -> None:
    rng = np.random.default_rng(length)
    lookup = np.where(rng.random(9_000) < 0.5, rng.permutation(9_000), -1).astype(np.int32)
    ids = rng.permutation(9_000)[:length].astype("u2")
    values = rng.integers(0, 1 << 32, length, "u4")
    outputs = []
    for function in (kernels.map_rows, twins.map_rows):
        rows = np.array([[values.ctypes.data, ids.ctypes.data, length, 0]])
        # One more, which nobody may write to.
        out, out_ids = np.full(length + 1, 7, "u4"), np.full(length + 1, 7, np.int32)
        assert function(rows, lookup, np.array([0, 9_000]), ids[:0], out[:-1], out_ids[:-1]) == 0
        kept = rows[0, 2]
        assert (out[-1], out_ids[-1]) == (7, 7)
        outputs.append((kept, out[:kept].tolist(), out_ids[:kept].tolist()))
    assert outputs[0] == outputs[1]


@given(problems())
def test_rows_are_mapped(problem: dict[str, Any]) -> None:
    found = mapped(problem, kernels.map_rows)
    assert found[0] == 0
    assert found == mapped(problem, twins.map_rows)


def test_the_memory_of_a_long_row_lives_as_long_as_it_is_used() -> None:
    """What is let go of at this size is no memory of the process any more: it would end."""
    code = """
import numpy as np
from scdl.kernels import genes as kernels
n = 5_000_000
values, ids = np.arange(n, dtype="u4"), np.arange(n, dtype="u4")
lookup = np.arange(n, dtype=np.int32)[::-1].copy()
lookup[::3] = -1
rows = np.array([[values.ctypes.data, ids.ctypes.data, n, 0]])
out, out_ids = np.zeros(n, "u4"), np.zeros(n, np.int32)
assert kernels.map_rows_sorted(rows, lookup, np.array([0, n]), ids[:0], out, out_ids, n) == 0
kept = np.flatnonzero(lookup >= 0)[::-1]
assert rows[0, 2] == len(kept)
assert (out[: len(kept)] == kept).all() and (out_ids[: len(kept)] == lookup[kept]).all()
"""
    subprocess.run([sys.executable, "-c", code], check=True)


@given(problems())
def test_rows_are_mapped_and_sorted(problem: dict[str, Any]) -> None:
    found = mapped(problem, kernels.map_rows_sorted, problem["n_columns"])
    assert found[0] == 0
    assert found == mapped(problem, twins.map_rows_sorted, problem["n_columns"])
    start = 0
    for length in found[1]:
        assert (np.diff(found[3][start : start + length]) > 0).all()
        start += length


@pytest.mark.parametrize("name", ["map_rows", "map_rows_sorted"])
@pytest.mark.parametrize(
    ("ids", "table", "expected"),
    [
        ([0, 3], [0, 1, 2], kernels.OUT_OF_RANGE),
        ([-1], [0, 1], kernels.OUT_OF_RANGE),
        ([0, 2], [1, 0, 1], kernels.REPEATED),
        ([0, 1, 2], [-1, 2, 2], kernels.REPEATED),
    ],
)
def test_what_cannot_be_mapped(name: str, ids: list[int], table: list[int], expected: int) -> None:
    problem = {
        "archives": [
            [np.ones(len(ids), "u4"), np.array(ids, np.int32), np.array([0, len(ids)], "u1")]
        ],
        "which": np.zeros(1, np.int64), "rows": np.zeros(1, np.int64), "dtype": np.dtype(np.int32),
        "lookup": np.array(table, np.int32), "bounds": np.array([0, len(table)]),
    }  # fmt: skip
    for function in (getattr(kernels, name), getattr(twins, name)):
        more = (3,) if name == "map_rows_sorted" else ()
        done = mapped(problem, function, *more)[0]
        # What keeps the order of the rows has nothing against genes that come twice.
        assert done == (expected if more or expected == kernels.OUT_OF_RANGE else 0)
