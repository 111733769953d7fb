"""Matrices that are in a file, or computed when they are read, by their slices."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
from numpy.typing import NDArray

from scdl.archive.csr import SparseRows
from scdl.archive.schema import MATRIX
from scdl.sources.matrices import Bounds, Csr, Dense, Matrix, Values, check_shape

#: Most rows of a sparse matrix to read at once.
_SPARSE_ROWS = 1 << 12


def is_sparse(values: Any) -> bool:
    """Whether a matrix is sparse, in memory or in a file."""
    import scipy.sparse as sp

    # Of the chunks of Dask.
    values = getattr(values, "_meta", values)
    # Releases of anndata have these classes with and without an underscore.
    stored = type(values).__name__.lstrip("_") in ("CSRDataset", "CSCDataset")
    return sp.issparse(values) or stored


def is_lazy(values: Any) -> bool:
    """Whether values are in a file, or computed when they are read."""
    package = type(values).__module__.partition(".")[0]
    return package in ("dask", "h5py", "zarr") or hasattr(values, "to_memory")


class LazyArray:
    """A dense array that is read in ranges, such as one of Dask, as a reader."""

    def __init__(self, values: Any) -> None:
        self._values = values
        self.dtype, self.item_shape = values.dtype, tuple(values.shape[1:])

    def __len__(self) -> int:
        return int(self._values.shape[0])

    def read(self, start: int, stop: int) -> NDArray[Any]:
        """Rows ``[start, stop)``."""
        return np.asarray(self._values[start:stop])


class SlicedMatrix(Matrix):
    """A matrix that is read by slices of rows.

    Parameters
    ----------
    read
        Returns rows ``[start, stop)``, sparse or dense, in memory or of Dask.
    like
        A matrix of the same kind; its rows are read chunk by chunk if it is of Dask.
    """

    def __init__(
        self, where: str, read: Callable[[int, int], Any], shape: tuple[int, int], like: Any
    ) -> None:
        self.where, self.shape, self.dtype = where, shape, like.dtype
        self.size = shape[0] * shape[1]
        self._read = read
        self._is_sparse = is_sparse(like)
        self._chunks = getattr(like, "chunks", None) if hasattr(like, "dask") else None

    def blocks(self, bounds: Bounds) -> Iterator[SparseRows]:
        for start, stop in self._ranges(bounds):
            yield from self._matrix(start, stop).blocks(bounds)

    def chosen(self, rows: NDArray[np.int64], bounds: Bounds) -> Iterator[SparseRows]:
        for start, stop in self._ranges(bounds):
            inside = rows[slice(*np.searchsorted(rows, (start, stop)))] - start
            if len(inside):
                yield from self._matrix(start, stop).chosen(inside, bounds)

    def _matrix(self, start: int, stop: int) -> Matrix:
        rows = self._read(start, stop)
        if hasattr(rows, "compute"):
            rows = rows.compute()
        return _rows_in_memory(self.where, rows, stop - start, self.shape[1])

    def part(self, start: int, stop: int) -> Matrix | None:
        return None

    def _ranges(self, bounds: Bounds) -> Iterator[tuple[int, int]]:
        """Rows to read together: chunks of Dask, each computed once, or some within bounds."""
        n_rows, n_columns = self.shape
        most = _SPARSE_ROWS if self._is_sparse else max(1, bounds.values // max(n_columns, 1))
        most = min(most, bounds.rows)
        steps = self._chunks[0] if self._chunks else [most] * -(-n_rows // most)
        start = stop = 0
        for step in steps:
            if stop > start and stop + step - start > most:
                yield start, stop
                start = stop
            stop = min(stop + step, n_rows)
        if stop > start:
            yield start, stop


def _rows_in_memory(where: str, rows: Any, n_rows: int, n_columns: int) -> Matrix:
    check_shape(where, tuple(rows.shape), (n_rows, n_columns))
    if not is_sparse(rows):
        return Dense(where, Values(np.asarray(rows)), (n_rows, n_columns))
    rows = rows.tocsr()
    return Csr(where, {part: Values(getattr(rows, part)) for part in MATRIX}, rows.shape)
