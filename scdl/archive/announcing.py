"""Announcing rows of archives to their storage before they are read."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from scdl.archive.joining import unmapped
from scdl.archive.requests import OFFSET_SIZE, Addresses, Request

#: Number of rows to sample for whether the others are in memory.
_SAMPLE = 16


def will_need(request: Request) -> Any:
    """Start to fetch rows, without waiting for them, unless they are in memory.

    Returns an object that may hold what was fetched, to be kept until the rows were read.
    """
    addresses = request.matrices.addresses()
    kept = [part.rows.announce() for part in unmapped(request, addresses)]
    is_mapped = addresses.table[request.which, OFFSET_SIZE] > 0
    if is_mapped.any():
        which, rows = request.which[is_mapped], request.rows[is_mapped]
        kept.append(_read_ahead(addresses, which, rows))
    return kept


def _read_ahead(addresses: Addresses, which: NDArray[np.int64], rows: NDArray[np.int64]) -> Any:
    """Start to read mapped rows from disk, unless a sample of them is in memory.

    Returns an object to be kept until the rows were read.
    """
    from scdl.kernels import rows as kernels
    from storage_backends.compute import read_ahead

    table, (data_dtype, index_dtype) = addresses.table, addresses.dtypes
    sizes = data_dtype.itemsize, index_dtype.itemsize
    offset_sizes = table[which, OFFSET_SIZE]
    offsets = table[which, 2] + rows * offset_sizes

    def locate(chosen: slice) -> NDArray[np.int64]:
        """Addresses of values and ids of rows, and their number, up to the first damaged row."""
        # Contiguous, as the kernel is compiled for such arrays already.
        cells = np.ascontiguousarray(which[chosen]), np.ascontiguousarray(rows[chosen])
        n = len(cells[0])
        located, indptr = np.empty((n, 4), np.int64), np.empty(n + 1, np.int64)
        bad = kernels.locate_rows(*cells, table, *sizes, located, indptr)
        return located[: n if bad < 0 else bad, :3]

    sample = slice(None, None, max(1, len(rows) // _SAMPLE))
    if not read_ahead.are_cold(offsets[sample]):
        found = locate(sample)
        if not read_ahead.are_cold(found[:, :2][found[:, 2] > 0].ravel()):
            return None
    arrays = (array for number in np.unique(which).tolist() for array in addresses.views[number])
    pages = read_ahead.SinglePages(arrays)
    # The offsets first, as the addresses of rows follow from them.
    read_ahead.will_need(offsets, offsets + 2 * offset_sizes)
    values, ids, lengths = locate(slice(None)).T
    begin, n_bytes = np.concatenate([values, ids]), np.concatenate([lengths * n for n in sizes])
    read_ahead.will_need(begin, begin + n_bytes)
    return pages
