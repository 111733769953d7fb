"""Comparing all that a dataset reads with a scipy matrix; archives that are wrong on purpose."""

from __future__ import annotations

import importlib.util
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import scipy.sparse as sp

from scdl.archive.schema import Info
from storage_backends import registry

HAS_TORCH = importlib.util.find_spec("torch") is not None


def row_of(matrix: sp.csr_array, i: int) -> tuple[np.ndarray, np.ndarray]:
    """Values and column ids of one row."""
    part = slice(matrix.indptr[i], matrix.indptr[i + 1])
    return matrix.data[part], matrix.indices[part]


def assert_counts(ds: Any, expected: sp.csr_array) -> None:
    n_obs, n_vars = expected.shape
    assert (ds.n_obs, len(ds), ds.number_of_rows()) == (n_obs, n_obs, n_obs)
    assert ds.n_vars == ds.number_of_variables() == [n_vars]
    assert ds.shape() == (n_obs, [n_vars])
    assert ds.number_of_values() == n_obs * n_vars
    assert ds.number_nonzero_values() == expected.nnz


def assert_rows(ds: Any, expected: sp.csr_array) -> None:
    """Every method that reads one cell or many gives exactly what scipy gives."""
    n_obs, n_vars = expected.shape
    dense = expected.toarray()
    for i in range(n_obs):
        values, columns = row_of(expected, i)
        (found, ids), features = ds.get_row(i)
        assert features is None
        assert found.dtype == expected.dtype
        np.testing.assert_array_equal(found, values)
        np.testing.assert_array_equal(ids, columns)
        padded, features = ds.get_row_padded(i)
        assert features is None
        assert padded.dtype == expected.dtype
        np.testing.assert_array_equal(padded, dense[i])
        if HAS_TORCH:
            np.testing.assert_array_equal(ds[i].numpy(), np.stack([values, columns]))
        # Every column of small matrices, and some of some rows of large ones.
        for j in range(0, n_vars if i < 60 else 0, max(1, n_vars // 10)):
            assert ds.get_row_column(i, j) == dense[i, j]
            stored = j in columns
            assert ds.get_row_column(i, j, False) == (dense[i, j] if stored else None)
    batch = ds.read_rows(slice(None))
    assert batch.data.dtype == expected.dtype
    assert batch.indptr.dtype == batch.rows.dtype == np.int64
    assert batch.n_vars == n_vars
    np.testing.assert_array_equal(batch.data, expected.data)
    np.testing.assert_array_equal(batch.indices, expected.indices)
    np.testing.assert_array_equal(batch.indptr, expected.indptr)
    np.testing.assert_array_equal(batch.rows, np.arange(n_obs))
    np.testing.assert_array_equal(batch.to_dense(), dense)
    np.testing.assert_array_equal(batch.to_scipy().toarray(), dense)


def assert_same(ds: Any, expected: sp.csr_array) -> None:
    assert_counts(ds, expected)
    assert_rows(ds, expected)


def rewritten(path: Path, target: Path | str, change: Mapping[str, Any]) -> Path | str:
    """A copy of an archive with other arrays and tables, as no conversion writes them."""
    to = registry.backend("memory" if str(target).startswith("ram:") else "memmap")
    store = registry.detect(path).store.open(str(path))
    with store, registry.create(target, to) as writer:
        for name, sparse in store.sparse.items():
            # Graphs are arrays of their own where archives keep no other elements.
            if writer.keeps_elements or not name.startswith("graphs/"):
                writer.write_sparse(name, sparse)
        for name in store.arrays:
            values = change.get(name, store.read(name))
            if values is not None:
                writer.append(name, values)
        for name in store.tables:
            table = change.get(name, store.read_table(name))
            if table is not None:
                writer.write_table(name, table)
        writer.commit(Info.from_attrs(store.attrs, store.path).to_attrs())
    return target


def everything(ds: Any) -> list[Any]:
    """All that an archive holds, as values that compare, NaN among them."""
    store = ds.store
    found: list[Any] = [(name, store.read(name).tobytes()) for name in sorted(store.arrays)]
    found += [repr(store.read_table(name).to_pylist()) for name in store.tables]
    for name in sorted(store.elements):
        found.append((name, repr(store.read_element(name))))
    return [*found, store.attrs["blocks"], len(ds)]
