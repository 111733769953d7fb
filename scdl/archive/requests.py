"""Requests for rows of one or many archives."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import DTypeLike, NDArray

from scdl.archive.schema import MATRIX
from storage_backends.base import ArrayStore

#: Matrices of a collection that are open at once. Mapped ones have three mappings each; Linux
#: allows a process 65,530.
MAX_MATRICES = 5_000
#: Column of the size of an offset in a table of addresses: 0 for matrices that must be read.
OFFSET_SIZE = 3
#: Value of that column for matrices whose rows were not read yet.
_UNKNOWN = -1


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
    kind
        Backend, prefix and dtypes: rows of matrices of one kind are read together.
    """

    store: ArrayStore
    is_sorted: bool
    views: Sequence[NDArray[Any]] = ()
    prefix: str = ""
    kind: tuple[Any, str, tuple[np.dtype[Any], ...]] = (None, "", ())

    @classmethod
    def of(cls, store: ArrayStore, prefix: str = "", *, is_sorted: bool) -> StoredMatrix:
        """The matrix of an open archive."""
        store, prefix = store.origin(prefix)
        mapped, dtypes = [], []
        for name in MATRIX:
            dtypes.append(store.spec(prefix + name).dtype)
            view = store.view(prefix + name)
            if view is not None:
                # Plain arrays are sliced several times faster than numpy.memmap.
                mapped.append(np.asarray(view))
        usable = len(mapped) == len(MATRIX) and mapped[1].dtype.kind == "u"
        # Otherwise reading through the store raises an error that explains the damage.
        usable = usable and len(mapped[0]) == len(mapped[1])
        kind = type(store), prefix, tuple(dtypes)
        return cls(store, is_sorted, mapped if usable else (), prefix, kind)


class Addresses:
    """Addresses of matrices in memory, found when their rows are first read.

    Parameters
    ----------
    archives
        The matrices.
    data_dtype, index_dtype
        Dtypes of values and column ids; matrices with other ones must be read.

    Attributes
    ----------
    table
        One row per matrix, in the form that ``locate_rows`` takes. Its memory stays mapped as long
        as this object exists.
    """

    def __init__(
        self,
        archives: Sequence[StoredMatrix],
        data_dtype: np.dtype[Any],
        index_dtype: np.dtype[Any],
    ) -> None:
        self._archives, self.dtypes = archives, (data_dtype, index_dtype)
        self.table = np.zeros((len(archives), 5), np.int64)
        self.table[:, OFFSET_SIZE] = _UNKNOWN
        self.views: dict[int, Sequence[NDArray[Any]]] = {}
        #: Whether all matrices are known to be in memory.
        self._are_mapped = False

    def find(self, which: NDArray[np.int64]) -> NDArray[np.int64]:
        """Find the matrices at positions; returns those that are not in memory, in order."""
        if self._are_mapped:
            return which[:0]
        sizes = self.table[which, OFFSET_SIZE]
        if (sizes == _UNKNOWN).any():
            for number in np.unique(which[sizes == _UNKNOWN]).tolist():
                self._add(number)
            sizes = self.table[which, OFFSET_SIZE]
            self._are_mapped = bool((self.table[:, OFFSET_SIZE] > 0).all())
        if sizes.all():
            return which[:0]
        return which[:1] if len(self._archives) == 1 else np.unique(which[sizes == 0])

    def _add(self, number: int) -> None:
        # If threads add the same matrix, all use the views of the first.
        views = self.views.setdefault(number, self._archives[number].views)
        row = self.table[number]
        if views and (views[0].dtype, views[1].dtype) == self.dtypes:
            row[:3], row[4] = [view.ctypes.data for view in views], len(views[0])
            # The last one, as it makes the row valid for other threads.
            row[OFFSET_SIZE] = views[2].itemsize
        else:
            row[OFFSET_SIZE] = 0


@dataclass(frozen=True, eq=False)
class Matrices:
    """Matrices of one or many archives whose rows are read together.

    Parameters
    ----------
    archives
        One matrix per archive, which may be opened on access.
    paths
        Path of each archive, for messages.
    data_dtype, index_dtype
        Common dtypes of the values and column ids.
    n_vars
        Number of genes of the widest feature block.
    is_sorted
        Whether the column ids of all rows are stored in strictly increasing order.
    """

    archives: Sequence[StoredMatrix]
    paths: Sequence[str]
    data_dtype: np.dtype[Any]
    index_dtype: np.dtype[Any]
    n_vars: int
    is_sorted: bool
    _addresses: dict[np.dtype[Any], Addresses] = field(default_factory=dict, init=False)

    @classmethod
    def of(cls, matrix: StoredMatrix, n_vars: int) -> Matrices:
        """Wrap a single matrix."""
        _, _, (data, indices, _) = matrix.kind
        return cls((matrix,), (matrix.store.path,), data, indices, n_vars, matrix.is_sorted)

    def addresses(self, data_dtype: np.dtype[Any] | None = None) -> Addresses:
        """Addresses of the matrices with the common dtypes, or another dtype of the values."""
        dtype = data_dtype or self.data_dtype
        found = self._addresses.get(dtype)
        # The system limits the mappings of a process.
        if found is None or len(found.views) >= MAX_MATRICES:
            found = self._addresses[dtype] = Addresses(self.archives, dtype, self.index_dtype)
        return found


class RowForm(NamedTuple):
    """The form in which rows are read.

    Attributes
    ----------
    ordered
        Whether to sort the genes of each cell and sum the values of repeated genes.
    index_dtype
        A wider integer dtype for the column ids; None: the stored dtype.
    sum_dtype
        Dtype of the values if they are summed; None: the stored dtype.
    totals
        Whether the total of each row over all its genes is wanted.
    concurrently
        Whether to read in a second thread, too, if there are many values.
    """

    ordered: bool = False
    index_dtype: DTypeLike | None = None
    sum_dtype: np.dtype[Any] | None = None
    totals: bool = False
    concurrently: bool = False


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
        paths = self.matrices.paths
        return ", ".join(paths[number] for number in np.unique(self.which)[:3].tolist())
