"""Rows of sparse matrices as they are stored, of one archive or of several together."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from scdl.archive.csr import SparseRows
from scdl.archive.schema import DATA, INDICES, INDPTR
from scdl.errors import ArchiveFormatError
from scdl.kernels import memory as recycled
from storage_backends.base import ArraySpec, ArrayStore
from storage_backends.capabilities import RowsRead
from storage_backends.compute.threads import for_each
from storage_backends.encoded import Allocate, EncodedRows

#: Number of values above which reading values and column ids in two threads saves time.
MANY_VALUES = 1 << 17
#: Number of rows to sample for whether the others are in memory.
_SAMPLE = 32
#: Bits of the number of a row, above which that of its archive is added.
_ROW_BITS = 40


class StoredRows(NamedTuple):
    """Rows of sparse matrices of one or several archives of one backend, to read together.

    Attributes
    ----------
    stores
        The archives.
    prefix
        Prefix of the array names ``data``, ``indices`` and ``indptr``; empty for the expression
        matrix.
    which, rows
        Position in `stores` of the archive of each row, and the row there; int64.
    """

    stores: Sequence[ArrayStore]
    prefix: str
    which: NDArray[np.int64]
    rows: NDArray[np.int64]

    @classmethod
    def of(cls, store: ArrayStore, prefix: str, rows: NDArray[np.int64]) -> StoredRows:
        """Rows of a single archive."""
        store, prefix = store.origin(prefix)
        return cls((store,), prefix, np.zeros(len(rows), np.int64), rows)

    def _read(
        self, name: str, starts: NDArray[np.int64], stops: NDArray[np.int64], out: NDArray[Any]
    ) -> None:
        """Read a range of an array for each row."""
        if len(self.stores) == 1:
            self.stores[0].read_ranges(self.prefix + name, starts, stops, out)
        else:
            read = type(self.stores[0]).read_across
            read(self.stores, self.prefix + name, self.which, starts, stops, out)

    def _will_need(self, name: str, starts: NDArray[np.int64], stops: NDArray[np.int64]) -> Any:
        """Announce a range of an array for each row."""
        announce = type(self.stores[0]).will_need_across
        return announce(self.stores, self.prefix + name, self.which, starts, stops)

    def announce(self) -> Any:
        """Announce the rows to the storage; returns an object to keep until they were read."""
        step = len(self.rows) // _SAMPLE
        if step > 1 and not self.stores[0].request_bytes:
            numbers, which = np.unique(self.which[::step], return_inverse=True)
            stores = [self.stores[number] for number in numbers.tolist()]
            if StoredRows(stores, self.prefix, which, self.rows[::step])._announce() is False:
                return None
        return self._announce()

    def _announce(self) -> Any:
        """Announce the rows; the result is False if all of them are in memory."""
        key = np.sort((self.which << _ROW_BITS) | self.rows)
        # Consecutive rows are one range.
        is_first = np.concatenate([[True], key[1:] - key[:-1] > 1])
        first, last = key[is_first], key[np.append(np.flatnonzero(is_first)[1:] - 1, len(key) - 1)]
        which, rows = first >> _ROW_BITS, np.stack([first, last + 1], axis=1) & (1 << _ROW_BITS) - 1
        runs = StoredRows(self.stores, self.prefix, np.repeat(which, 2), rows.ravel())
        kept = [runs._will_need(INDPTR, runs.rows, runs.rows + 1)]
        ends = np.empty(len(runs.rows), self._spec(0, INDPTR).dtype)
        runs._read(INDPTR, runs.rows, runs.rows + 1, ends)
        starts, stops = ends.reshape(-1, 2).T.astype(np.int64, order="C")
        if (starts < 0).any() or (stops < starts).any() or (stops > self._nnz(which)).any():
            # Reading raises the error of the row that is damaged.
            return False
        ranges = runs._replace(which=which, rows=first)
        kept += [ranges._will_need(name, starts, stops) for name in (DATA, INDICES)]
        return any(one is not False for one in kept) and kept

    def _spec(self, number: int, name: str) -> ArraySpec:
        return self.stores[number].contents.arrays[self.prefix + name]

    def _nnz(self, which: NDArray[np.int64]) -> NDArray[np.int64]:
        """Number of stored values of the archives at positions in `stores`."""
        return np.array([self._spec(i, DATA).length for i in range(len(self.stores))])[which]

    def plan(self) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """Read the half-open ranges of the values of rows, int64, from ``indptr``."""
        stores, prefix, which, rows = self
        bounds = np.empty(2 * len(rows), self._spec(0, INDPTR).dtype)
        self._read(INDPTR, rows, rows + 2, bounds)
        starts, stops = bounds.reshape(-1, 2).T.astype(np.int64, order="C")
        nnz = self._nnz(which)
        # uint64 offsets of 2^63 and more have become negative.
        outside = (starts < 0) | (stops < starts) | (stops > nnz)
        if outside.any():
            bad = int(outside.argmax())
            raise ArchiveFormatError(
                f"{stores[which[bad]].path}: {prefix}{INDPTR} places row {rows[bad]} at values "
                f"[{starts[bad]}, {stops[bad]}), expected a range within [0, {nnz[bad]}); the "
                "archive is damaged, convert the source again"
            )
        return starts, stops

    def read(
        self,
        index_dtype: np.dtype[Any] | None = None,
        *,
        ordered: bool = False,
        concurrently: bool = False,
    ) -> SparseRows:
        """Read rows of sparse matrices in the requested order.

        Parameters
        ----------
        index_dtype
            A wider integer dtype for the column ids; None: the stored dtype.
        ordered
            Whether to sort the genes of each row if the storage does; ``is_sorted`` of the result
            tells. Other rows are read in the stored dtype.
        concurrently
            Whether to read values and column ids in two threads if there are many.
        """
        starts, stops = self.plan()
        indptr = np.zeros(len(starts) + 1, np.int64)
        np.cumsum(stops - starts, out=indptr[1:])
        total = int(indptr[-1])
        arrays = [store.contents.arrays for store in self.stores]
        values, ids = (arrays[0][self.prefix + name] for name in (DATA, INDICES))
        data = recycled.empty(total, values.dtype)
        indices = recycled.empty(total, index_dtype or ids.dtype)
        largest = _largest([one[self.prefix + INDICES].below for one in arrays])
        read_rows = type(self.stores[0]).read_rows_across
        found = read_rows(
            self.stores, self.prefix, self.which, starts, stops, (data, indices), ordered=ordered
        )
        if found != RowsRead.NOTHING:
            return SparseRows(data, indices, indptr, largest, found == RowsRead.SORTED)
        if ordered:
            # The caller sorts them, and casts them to the wider dtype with that.
            indices = recycled.empty(total, ids.dtype)
        parts = [(DATA, data), (INDICES, indices)]
        if concurrently and total >= MANY_VALUES:
            for_each(lambda part: self._read(part[0], starts, stops, part[1]), parts)
        else:
            for name, out in parts:
                self._read(name, starts, stops, out)
        return SparseRows(data, indices, indptr, largest)

    def encoded(self, allocate: Allocate) -> tuple[EncodedRows, NDArray[np.int64]] | None:
        """The rows as they are encoded, and their offsets; None if the storage cannot give them."""
        starts, stops = self.plan()
        gather = type(self.stores[0]).encoded_rows_across
        found = gather(self.stores, self.prefix, self.which, starts, stops, allocate)
        return None if found is None else (found, np.append(0, np.cumsum(stops - starts)))


def _largest(below: Sequence[int | None]) -> int | None:
    """Upper bound of column ids that are less than one of some numbers, if all are known."""
    known = [bound for bound in below if bound is not None]
    return max(known) - 1 if known and len(known) == len(below) else None
