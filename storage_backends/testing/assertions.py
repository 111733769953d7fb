"""Assertions that compare archives, arrays and tables bit by bit."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from storage_backends.base import ArrayStore
from storage_backends.testing.archives import Contents, large_archive


def assert_same_bits(actual: NDArray[Any], expected: NDArray[Any], name: str) -> None:
    """Check that dtype (in native order), shape and bits are the same."""
    assert actual.dtype == expected.dtype.newbyteorder("="), name
    assert actual.shape == expected.shape, name
    ours, theirs = (np.array(v, actual.dtype).reshape(-1) for v in (actual, expected))
    bits = f"u{actual.itemsize}"
    np.testing.assert_array_equal(ours.view(bits), theirs.view(bits), err_msg=name)


def assert_same_table(actual: pa.Table, expected: pa.Table) -> None:
    """Check that columns, their order, types, categories, nulls and values are the same."""
    assert actual.column_names == expected.column_names
    assert actual.schema.types == expected.schema.types
    assert actual.num_rows == expected.num_rows
    for name in expected.column_names:
        ours, theirs = (t[name].unify_dictionaries().combine_chunks() for t in (actual, expected))
        if pa.types.is_dictionary(theirs.type):
            assert ours.dictionary.equals(theirs.dictionary), name
            ours, theirs = ours.indices, theirs.indices
        if pa.types.is_floating(theirs.type):
            assert ours.is_null().equals(theirs.is_null()), name
            assert_same_bits(np.array(ours.fill_null(0)), np.array(theirs.fill_null(0)), name)
        else:
            assert ours.equals(theirs), name


def assert_holds(store: ArrayStore, contents: Contents) -> None:
    """Check that `store` holds `contents` and nothing else."""
    assert sorted(store.arrays) == sorted(contents.arrays)
    assert sorted(store.tables) == sorted(contents.tables)
    for name, values in contents.arrays.items():
        spec = store.arrays[name]
        assert (spec.length, spec.item_shape) == (len(values), values.shape[1:]), name
        assert spec.dtype == values.dtype, name
        assert_same_bits(store.read(name), values, name)
    for name, table in contents.tables.items():
        assert_same_table(store.read_table(name), table)
    ours, theirs = (json.dumps(dict(a), sort_keys=True) for a in (store.attrs, contents.attrs))
    assert ours == theirs


def assert_reads(store: ArrayStore, name: str, ranges: Sequence[tuple[int, int]]) -> None:
    """Check ranges read from the large archive against slices of its arrays."""
    values = large_archive().arrays[name]
    expected = np.concatenate([values[:0], *(values[start:stop] for start, stop in ranges)])
    starts, stops = np.array(ranges, np.int64).reshape(-1, 2).T.copy()
    out = np.full_like(expected, 77)
    store.read_ranges(name, starts, stops, out)
    assert_same_bits(out, expected, f"{name}: {ranges}")
