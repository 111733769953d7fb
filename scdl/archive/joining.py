"""Read rows of one or many archives as one batch.

Each archive is read once, and each row is copied once.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from scdl.archive import csr
from scdl.archive.requests import OFFSET_SIZE, Addresses, Request, RowForm
from scdl.archive.stored_rows import MANY_VALUES, StoredRows
from scdl.errors import ArchiveFormatError, OutputError
from scdl.kernels import memory as recycled
from storage_backends.base import ArrayStore
from storage_backends.compute.threads import for_each
from storage_backends.compute.traffic import TRAFFIC
from storage_backends.encoded import Allocate, EncodedRows


class Lookup(NamedTuple):
    """Maps the genes of feature blocks to one gene space.

    Attributes
    ----------
    genes
        Concatenated lookup tables: position of each gene in the gene space, -1 if it is not
        included.
    bounds
        Offsets of the tables and the end of the last, int64.
    in_order
        For each table, whether positions are strictly increasing, so that sorted genes stay sorted.
    table_of
        The table of each row of a request, int64.
    """

    genes: NDArray[np.int32]
    bounds: NDArray[np.int64]
    in_order: NDArray[np.bool_]
    table_of: NDArray[np.int64]


def read_rows(request: Request, form: RowForm) -> csr.SparseRows:
    """Read rows of archives in the order of a request, without totals.

    Raises
    ------
    OutputError
        The dtype cannot hold the column ids.
    ArchiveFormatError
        An archive is damaged.
    CastError
        The dtype cannot represent a sum.
    """
    matrices = request.matrices
    stored = matrices.index_dtype
    wide = stored if form.index_dtype is None else np.dtype(form.index_dtype)
    if wide != stored and not np.can_cast(stored, wide, "safe"):
        raise OutputError(
            f"{request.where}: index_dtype {wide} cannot hold the column ids, which are "
            f"stored as {stored}; choose a wider dtype"
        )
    sorts = form.ordered and not matrices.is_sorted
    addresses = matrices.addresses()
    parts = unmapped(request, addresses)
    if len(parts) == 1 and parts[0].is_all and parts[0].dtypes == addresses.dtypes:
        rows = parts[0].rows.read(wide, ordered=sorts, concurrently=form.concurrently)
    else:
        # Sorting also casts the column ids to the wider dtype.
        read_as = stored if sorts else wide
        rows = _copy(request, addresses, parts, read_as, concurrently=form.concurrently)
    if sorts and not rows.is_sorted:
        return csr.clean(rows, matrices.n_vars, request.where, wide, form.sum_dtype)
    return rows


def encoded_rows(
    request: Request, allocate: Allocate
) -> tuple[EncodedRows, NDArray[np.int64]] | None:
    """Gather the rows of a request as they are encoded, and their offsets.

    None if the storage cannot give them all together.
    """
    addresses = request.matrices.addresses()
    parts = unmapped(request, addresses)
    is_one = len(parts) == 1 and parts[0].is_all and parts[0].dtypes == addresses.dtypes
    return parts[0].rows.encoded(allocate) if is_one else None


class _Part(NamedTuple):
    """Rows of a request that are not in memory, and are read together; `at` are their positions.

    `is_all` tells whether these are all rows of the request, in its order.
    """

    rows: StoredRows
    at: NDArray[np.int64] | slice
    is_all: bool
    dtypes: tuple[np.dtype[Any], np.dtype[Any]]


def unmapped(request: Request, addresses: Addresses) -> list[_Part]:
    """The rows of a request that must be read, by backend and dtypes of their archives."""
    matrices, which, rows = request
    missing = addresses.find(which)
    if not len(missing):
        return []
    groups: dict[Any, tuple[list[int], list[ArrayStore]]] = {}
    for number in missing.tolist():
        matrix = matrices.archives[number]
        numbers, stores = groups.setdefault(matrix.kind, ([], []))
        numbers.append(number)
        stores.append(matrix.store)
    is_all = len(groups) == 1 and not addresses.table[which, OFFSET_SIZE].any()
    parts = []
    for (_, prefix, dtypes), (numbers, stores) in groups.items():
        at = slice(None) if is_all else np.flatnonzero(np.isin(which, numbers))
        local = np.searchsorted(numbers, which[at])
        parts.append(_Part(StoredRows(stores, prefix, local, rows[at]), at, is_all, dtypes[:2]))
    return parts


def _copy(
    request: Request,
    addresses: Addresses,
    parts: Sequence[_Part],
    index_dtype: np.dtype[Any],
    *,
    concurrently: bool,
) -> csr.SparseRows:
    """Copy rows, as stored, from their addresses in memory."""
    from scdl.kernels import rows as kernels

    matrices = request.matrices
    # _owners keeps the memory of rows that were read alive until they are copied.
    rows, indptr, _owners = _locate(request, addresses, parts)
    total = int(indptr[-1])
    data = recycled.empty(total, matrices.data_dtype)
    indices = recycled.empty(total, index_dtype)
    # The bits of values are copied, as numba lacks float16.
    out = np.empty(0, matrices.index_dtype), data.view(f"u{data.itemsize}"), indices
    if not concurrently or total < MANY_VALUES:
        return csr.SparseRows(data, indices, indptr, int(kernels.copy_rows(rows, indptr, *out)))
    half = len(rows) // 2
    one, other = (rows[:half], indptr[: half + 1], *out), (rows[half:], indptr[half:], *out)
    largest: list[np.uint64] = []
    for_each(lambda part: largest.append(kernels.copy_rows(*part)), [one, other])
    return csr.SparseRows(data, indices, indptr, int(max(largest)))


def read_mapped_rows(
    request: Request,
    lookup: Lookup,
    n_vars: int,
    index_dtype: np.dtype[Any],
    *,
    ordered: bool,
    sum_dtype: np.dtype[Any] | None = None,
    totals: NDArray[np.float64] | None = None,
) -> csr.SparseRows:
    """Read rows of archives in the order of a request and map them to one gene space.

    Genes outside the gene space are left out.

    Parameters
    ----------
    lookup, n_vars
        The gene space, and its number of genes.
    index_dtype
        Dtype of the column ids; it must represent all positions of the gene space.
    ordered
        Whether to sort the genes of each cell and sum the values of genes that map to one.
    sum_dtype
        Dtype of the values if they are summed; None: the stored dtype.
    totals
        Output, if given: the sum of all values of each row, including genes that are left out.
        float16 values are then returned as float32, since compiled code cannot add float16.

    Raises
    ------
    ArchiveFormatError
        A column id is out of range for its feature block.
    CastError
        The dtype cannot represent a sum.
    """
    from scdl.kernels import genes as gene_kernels
    from scdl.kernels import rows as kernels

    matrices = request.matrices
    data_dtype = matrices.data_dtype
    if totals is not None and data_dtype == np.float16:
        data_dtype = np.dtype(np.float32)
    addresses = matrices.addresses(data_dtype)
    rows, indptr, _owners = _locate(request, addresses, unmapped(request, addresses))
    if totals is not None:
        kernels.sum_rows(rows, np.empty(0, data_dtype), totals)
    rows[:, 3] = lookup.table_of
    lengths = rows[:, 2].copy()
    total = int(indptr[-1])
    data, indices = recycled.empty(total, data_dtype), recycled.empty(total, index_dtype)
    tables = lookup.genes, lookup.bounds, np.empty(0, matrices.index_dtype)
    out = data.view(f"u{data.itemsize}"), indices
    in_order = matrices.is_sorted and bool(lookup.in_order[lookup.table_of].all())
    done = gene_kernels.REPEATED
    if ordered and not in_order:
        done = gene_kernels.map_rows_sorted(rows, *tables, *out, n_vars)
    if sums := done == gene_kernels.REPEATED:
        rows[:, 2] = lengths
        done = gene_kernels.map_rows(rows, *tables, *out)
    if done == gene_kernels.OUT_OF_RANGE:
        raise ArchiveFormatError(
            f"{request.where}: found a column id that is not less than the number of genes of its "
            "block; the archive is damaged, convert the source again"
        )
    np.cumsum(rows[:, 2], out=indptr[1:])
    mapped = csr.SparseRows(data[: indptr[-1]], indices[: indptr[-1]], indptr)
    if ordered and not in_order and sums:
        return csr.clean(mapped, n_vars, request.where, sum_dtype=sum_dtype)
    return mapped


def _locate(
    request: Request, addresses: Addresses, parts: Sequence[_Part]
) -> tuple[NDArray[np.int64], NDArray[np.int64], list[Any]]:
    """Find the addresses of rows in memory, where `parts` are read first.

    Returns an n x 4 array, see ``map_rows``; offsets of the concatenated rows; and objects that
    keep the memory alive.
    """
    from scdl.kernels import rows as kernels

    matrices, which, rows = request
    located, indptr = np.empty((len(rows), 4), np.int64), np.empty(len(rows) + 1, np.int64)
    data_dtype, _ = addresses.dtypes
    owners: list[Any] = [addresses]
    n_read = 0
    for part in parts:
        read = part.rows.read()
        data = read.data.astype(data_dtype, copy=False)
        indices = read.indices.astype(matrices.index_dtype, copy=False)
        located[part.at, 0] = data.ctypes.data + read.indptr[:-1] * data.itemsize
        located[part.at, 1] = indices.ctypes.data + read.indptr[:-1] * indices.itemsize
        located[part.at, 2] = np.diff(read.indptr)
        owners.append((data, indices))
        n_read += len(data)
    sizes = data_dtype.itemsize, matrices.index_dtype.itemsize
    bad = kernels.locate_rows(which, rows, addresses.table, *sizes, located, indptr)
    if bad >= 0:
        damaged = matrices.archives[which[bad]]
        # Reading the offsets by the store raises an error that says more.
        StoredRows.of(damaged.store, damaged.prefix, rows[bad : bad + 1]).plan()
        raise ArchiveFormatError(
            f"{damaged.store.path}: row {rows[bad]} lies outside the stored values; the archive is "
            "damaged, convert the source again"
        )
    # The bytes of the other rows were counted when they were read.
    TRAFFIC.ask((int(indptr[-1]) - n_read) * sum(sizes))
    return located, indptr, owners
