"""Requests for rows of one or many archives."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from scdl.archive.schema import DATA, INDICES, MATRIX
from storage_backends.base import ArrayStore
from storage_backends.compute.caching import cached_property

#: Number of rows whose pages are touched to estimate whether the others are in memory.
_SAMPLE = 24
#: Upper bound of the time to touch a page that is in memory, even on a busy machine.
_WARM_NANOSECONDS = 40_000


class StoredMatrix(NamedTuple):
    """The expression matrix of an archive, or a graph.

    Attributes
    ----------
    store
        The archive.
    is_sorted
        Whether the column ids of each row are stored in strictly increasing order.
    views
        Values, column ids and offsets if all three are memory-mapped; otherwise empty.
    prefix
        Prefix of the names of its arrays: empty for the expression matrix.
    """

    store: ArrayStore
    is_sorted: bool
    views: Sequence[NDArray[Any]] = ()
    prefix: str = ""

    @classmethod
    def of(cls, store: ArrayStore, prefix: str = "", *, is_sorted: bool) -> StoredMatrix:
        """The matrix of an open archive."""
        mapped = []
        for name in MATRIX:
            view = store.view(prefix + name)
            if view is not None:
                # Plain arrays are sliced several times faster than numpy.memmap.
                mapped.append(np.asarray(view))
        usable = len(mapped) == len(MATRIX) and mapped[1].dtype.kind == "u"
        # Otherwise reading through the store raises an error that explains the damage.
        usable = usable and len(mapped[0]) == len(mapped[1])
        return cls(store, is_sorted, mapped if usable else (), prefix)


class Addresses(NamedTuple):
    """Addresses of the arrays of several matrices in memory.

    Attributes
    ----------
    data_dtype
        Dtype of the values.
    table
        One row per matrix, in the form that ``locate_rows`` takes.
    unmapped
        Positions of the matrices whose rows must be read; their rows of `table` are zero.
    """

    data_dtype: np.dtype[Any]
    table: NDArray[np.int64]
    unmapped: Sequence[int]


@dataclass(frozen=True, eq=False)
class Matrices:
    """Matrices of one or many archives whose rows are read together.

    Parameters
    ----------
    archives
        One matrix per archive.
    data_dtype, index_dtype
        Common dtypes of the values and column ids.
    n_vars
        Number of genes of the widest feature block.
    """

    archives: Sequence[StoredMatrix]
    data_dtype: np.dtype[Any]
    index_dtype: np.dtype[Any]
    n_vars: int

    @classmethod
    def of(cls, matrix: StoredMatrix, n_vars: int) -> Matrices:
        """Wrap a single matrix."""
        data = matrix.store.spec(matrix.prefix + DATA).dtype
        return cls((matrix,), data, matrix.store.spec(matrix.prefix + INDICES).dtype, n_vars)

    @cached_property
    def is_sorted(self) -> bool:
        """Whether the column ids of all rows are stored in strictly increasing order."""
        return all(one.is_sorted for one in self.archives)

    @cached_property
    def is_read_as_stored(self) -> bool:
        """Whether the store reads rows in final form: one unmapped matrix of the common dtype."""
        first = self.archives[0] if len(self.archives) == 1 else None
        if first is None or first.views:
            return False
        return first.store.spec(first.prefix + DATA).dtype == self.data_dtype

    @cached_property
    def addresses(self) -> Addresses:
        """Addresses of the arrays that are memory-mapped and have the common dtypes."""
        return self.addresses_of(self.data_dtype)

    def addresses_of(self, data_dtype: np.dtype[Any]) -> Addresses:
        """The same as :attr:`addresses` for another dtype of the values."""
        table, unmapped = np.zeros((len(self.archives), 5), np.int64), []
        for i, (_, _, views, _) in enumerate(self.archives):
            if views and (views[0].dtype, views[1].dtype) == (data_dtype, self.index_dtype):
                starts = (view.ctypes.data for view in views)
                table[i] = *starts, views[2].itemsize, len(views[0])
            else:
                unmapped.append(i)
        return Addresses(data_dtype, table, unmapped)


class Request(NamedTuple):
    """Rows of archives, in the requested order.

    Attributes
    ----------
    matrices
        Matrices of the archives that contain the rows.
    which
        Position in `matrices` of each row, int64.
    rows
        Row numbers within the archives, int64.
    """

    matrices: Matrices
    which: NDArray[np.int64]
    rows: NDArray[np.int64]

    @property
    def where(self) -> str:
        """Paths for messages; only those of the first three archives."""
        return ", ".join(one.store.path for one in self.matrices.archives[:3])


def is_cold(request: Request) -> bool:
    """Whether some of the rows must be read from disk; touches a few of them.

    Querying every one of many archives takes longer than reading from the page cache. Returns True
    for rows that are not memory-mapped, since only their archives know.
    """
    step = max(1, len(request.rows) // _SAMPLE)
    n_slow = 0
    for i in range(0, len(request.rows), step):
        views = request.matrices.archives[request.which[i]].views
        if not views:
            return True
        data, indices, indptr = views
        began = time.perf_counter_ns()
        start = int(indptr[request.rows[i]])
        if start < len(data):
            data[start].tobytes(), indices[start].tobytes()
        n_slow += time.perf_counter_ns() - began > _WARM_NANOSECONDS
        if n_slow > 1:
            return True
    return False
