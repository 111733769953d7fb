"""Which rows of which archives to read."""

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

#: Rows that are touched to find out whether the others are in memory.
_SAMPLE = 24
#: Touching a page takes less than this if it is in memory, also on a busy machine.
_WARM_NANOSECONDS = 40_000


class StoredMatrix(NamedTuple):
    """The expression matrix of an archive, or a graph.

    Attributes
    ----------
    store
        The archive.
    is_sorted
        Whether the column ids of each row are stored in rising order, each once.
    views
        Values, column ids and offsets where all three are mapped to memory; otherwise empty.
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
        views = [store.view(prefix + name) for name in MATRIX]
        # Plain arrays are sliced several times faster than numpy.memmap.
        mapped = [np.asarray(view) for view in views if view is not None]
        usable = len(mapped) == len(MATRIX) and mapped[1].dtype.kind == "u"
        # Reading by the store reports what is wrong.
        usable = usable and len(mapped[0]) == len(mapped[1])
        return cls(store, is_sorted, mapped if usable else (), prefix)


class Addresses(NamedTuple):
    """Where the arrays of several matrices are in memory.

    Attributes
    ----------
    data_dtype
        Type of the values.
    table
        A row per matrix, as ``locate_rows`` takes them.
    unmapped
        Positions of the matrices whose rows must be read, with zeros in `table`.
    """

    data_dtype: np.dtype[Any]
    table: NDArray[np.int64]
    unmapped: Sequence[int]


@dataclass(frozen=True, eq=False)
class Matrices:
    """Matrices of one or many archives, whose rows are read together.

    Parameters
    ----------
    archives
        One matrix per archive.
    data_dtype, index_dtype
        Types that hold the values and the column ids of all of them.
    n_vars
        Genes of the widest feature block.
    """

    archives: Sequence[StoredMatrix]
    data_dtype: np.dtype[Any]
    index_dtype: np.dtype[Any]
    n_vars: int

    @classmethod
    def of(cls, matrix: StoredMatrix, n_vars: int) -> Matrices:
        """One matrix on its own."""
        data, indices = (matrix.store.spec(matrix.prefix + name) for name in (DATA, INDICES))
        return cls((matrix,), data.dtype, indices.dtype, n_vars)

    @cached_property
    def is_sorted(self) -> bool:
        """Whether the column ids of all rows are stored in rising order, each once."""
        return all(one.is_sorted for one in self.archives)

    @cached_property
    def is_read_as_stored(self) -> bool:
        """Whether reading by the store gives the result: a single matrix that is not mapped."""
        first = self.archives[0] if len(self.archives) == 1 else None
        if first is None or first.views:
            return False
        return first.store.spec(first.prefix + DATA).dtype == self.data_dtype

    @cached_property
    def addresses(self) -> Addresses:
        """Addresses of the arrays that are mapped and have the common types."""
        return self.addresses_of(self.data_dtype)

    def addresses_of(self, data_dtype: np.dtype[Any]) -> Addresses:
        """The same for another type of values."""
        table, unmapped = np.zeros((len(self.archives), 5), np.int64), []
        for i, (_, _, views, _) in enumerate(self.archives):
            if views and (views[0].dtype, views[1].dtype) == (data_dtype, self.index_dtype):
                starts = (view.ctypes.data for view in views)
                table[i] = *starts, views[2].itemsize, len(views[0])
            else:
                unmapped.append(i)
        return Addresses(data_dtype, table, unmapped)


class Request(NamedTuple):
    """Rows of archives, in the order in which they are asked for.

    Attributes
    ----------
    matrices
        Of the archives that have one of the rows.
    which
        Position in `matrices` of each row, int64.
    rows
        Rows within their archives, int64.
    """

    matrices: Matrices
    which: NDArray[np.int64]
    rows: NDArray[np.int64]

    @property
    def where(self) -> str:
        """Paths for messages, of the first archives if there are many."""
        return ", ".join(one.store.path for one in self.matrices.archives[:3])


def is_cold(request: Request) -> bool:
    """Whether some of the rows have to come from a disk; touches a few of them, in microseconds.

    Asking every archive of many takes longer than reading from the page cache. True where rows are
    not mapped, as only their archives know.
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
