"""Rows of several archives as one batch: each archive read once, no row moved twice."""

from __future__ import annotations

import time
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from scdl.archive import csr
from scdl.archive.schema import MATRIX
from scdl.errors import ArchiveFormatError
from scdl.kernels import memory as recycled
from storage_backends.base import ArrayStore
from storage_backends.compute.caching import cached_property
from storage_backends.compute.threads import both

#: Rows that are touched to find out whether the others are in memory.
_SAMPLE = 24
#: Pages in memory are there in less; also on a busy machine most of them are.
_WARM_NANOSECONDS = 40_000


class Mapped(NamedTuple):
    """Where the arrays of an archive that is mapped to memory are.

    Attributes
    ----------
    addresses
        Of values, column ids and offsets.
    offset_bytes
        Of one offset.
    length
        Stored values.
    dtypes
        Of values and column ids.
    owners
        What keeps the memory alive.
    """

    addresses: tuple[int, int, int]
    offset_bytes: int
    length: int
    dtypes: tuple[np.dtype[Any], np.dtype[Any]]
    owners: Sequence[NDArray[Any]]


class Source(NamedTuple):
    """An archive to read rows from.

    Attributes
    ----------
    store
        The archive.
    is_sorted
        Whether the genes of each cell are stored in rising order, each once.
    mapped
        Its arrays, where they are mapped to memory.
    prefix
        What stands before their names: empty for the expression matrix.
    """

    store: ArrayStore
    is_sorted: bool
    mapped: Mapped | None
    prefix: str = ""


class Sources(tuple[Source, ...]):
    """Archives to read rows from together."""

    @cached_property
    def is_sorted(self) -> bool:
        """Whether the genes of all cells are stored in rising order, each once."""
        return all(source.is_sorted for source in self)

    def arrays(self, dtypes: Dtypes) -> NDArray[np.int64]:
        """Where the arrays of each are, see ``locate_rows``; zeros where rows must be read."""
        known: dict[Any, NDArray[np.int64]] = self.__dict__.setdefault("_arrays", {})
        if dtypes[:2] not in known:
            found = np.zeros((len(self), 5), np.int64)
            for i, one in enumerate(self):
                if one.mapped is not None and one.mapped.dtypes == dtypes[:2]:
                    found[i] = *one.mapped.addresses, one.mapped.offset_bytes, one.mapped.length
            known[dtypes[:2]] = found
        return known[dtypes[:2]]


class Request(NamedTuple):
    """Rows of archives, in the order in which they are asked for.

    Attributes
    ----------
    sources
        The archives, those that have a row.
    which
        Position in `sources` of each row, int64.
    rows
        Rows within their archives, int64.
    """

    sources: Sources
    which: NDArray[np.int64]
    rows: NDArray[np.int64]


class Lookup(NamedTuple):
    """From the genes of blocks to those of one gene space.

    Attributes
    ----------
    genes
        Tables one after the other: of each gene its place in the gene space, -1 where it has none.
    bounds
        Where each table begins, and the end of the last; int64.
    in_order
        Of each table, whether genes that rise in the block rise in the gene space, each once.
    table_of
        The table of each row of a request, int64.
    """

    genes: NDArray[np.int32]
    bounds: NDArray[np.int64]
    in_order: NDArray[np.bool_]
    table_of: NDArray[np.int64]


class Dtypes(NamedTuple):
    """Types of the values and column ids that archives have in common, and of the ids to give."""

    data: np.dtype[Any]
    stored: np.dtype[Any]
    indices: np.dtype[Any]


def source(store: ArrayStore, prefix: str = "", *, is_sorted: bool) -> Source:
    """An archive, and where the arrays of its matrix, or of a graph, are mapped."""
    views = [store.view(prefix + name) for name in MATRIX]
    if any(view is None for view in views):
        return Source(store, is_sorted, None, prefix)
    data, indices, indptr = (np.asarray(view) for view in views)
    if len(data) != len(indices):
        # Reading says what is wrong.
        return Source(store, is_sorted, None, prefix)
    addresses = data.ctypes.data, indices.ctypes.data, indptr.ctypes.data
    dtypes = data.dtype, indices.dtype
    mapped = Mapped(addresses, indptr.itemsize, len(data), dtypes, (data, indices, indptr))
    return Source(store, is_sorted, mapped, prefix)


def join(request: Request, dtypes: Dtypes, *, concurrently: bool = False) -> csr.SparseRows:
    """Rows of archives in the order of a request, as they are stored.

    Parameters
    ----------
    concurrently
        Whether to copy half of the rows in another thread, where they are many.
    """
    from scdl.kernels import addresses

    # What was read for the request must live until it is copied.
    rows, _owners = _locate(request, dtypes)
    indptr = np.zeros(len(rows) + 1, np.int64)
    np.cumsum(rows[:, 2], out=indptr[1:])
    total = int(indptr[-1])
    data = recycled.empty(total, dtypes.data)
    indices = recycled.empty(total, dtypes.indices)
    out = np.empty(0, dtypes.stored), data.view(_unit(dtypes.data)), indices
    if not concurrently or total < csr.MANY_VALUES:
        largest = addresses.copy_rows(rows, indptr, *out)
        return csr.SparseRows(data, indices, indptr, int(largest))
    half = len(rows) // 2
    one, other = (rows[:half], indptr[: half + 1], *out), (rows[half:], indptr[half:], *out)
    largest = max(both(addresses.copy_rows, one, other))
    return csr.SparseRows(data, indices, indptr, int(largest))


def join_mapped(
    request: Request,
    dtypes: Dtypes,
    lookup: Lookup,
    n_vars: int,
    *,
    ordered: bool,
    sum_dtype: np.dtype[Any] | None = None,
    totals: NDArray[np.float64] | None = None,
) -> csr.SparseRows:
    """Rows of archives in the order of a request, with the genes of one gene space.

    Genes that it lacks are left out.

    Parameters
    ----------
    lookup, n_vars
        The gene space, and its genes.
    sum_dtype
        Type of the values where several genes are one and are summed; None: the one that they have.
    totals
        Output, if given: the sum of all values of each row, also of genes that are left out. The
        values are not float16 then.
    ordered
        Whether the genes of each cell must come in rising order, each once; several that are one
        are summed then.

    Raises
    ------
    ArchiveFormatError
        A column id is not below the number of genes of its block.
    CastError
        The type cannot hold a sum.
    """
    from scdl.kernels import addresses
    from scdl.kernels import genes as gene_kernels

    rows, _owners = _locate(request, dtypes)
    if totals is not None:
        addresses.sum_rows(rows, np.empty(0, dtypes.data), totals)
    rows[:, 3] = lookup.table_of
    lengths = rows[:, 2].copy()
    total = int(lengths.sum())
    data = recycled.empty(total, dtypes.data)
    indices = recycled.empty(total, dtypes.indices)
    tables = lookup.genes, lookup.bounds, np.empty(0, dtypes.stored)
    out = data.view(_unit(dtypes.data)), indices
    in_order = request.sources.is_sorted and bool(lookup.in_order[lookup.table_of].all())
    done = gene_kernels.REPEATED
    if ordered and not in_order:
        done = gene_kernels.map_rows_sorted(rows, *tables, *out, n_vars)
    if sums := done == gene_kernels.REPEATED:
        rows[:, 2] = lengths
        done = gene_kernels.map_rows(rows, *tables, *out)
    where = ", ".join(source.store.path for source in request.sources[:3])
    if done == gene_kernels.OUT_OF_RANGE:
        raise ArchiveFormatError(
            f"{where}: a column id is not below the number of genes of its block; the archive is "
            "damaged, convert the source again"
        )
    indptr = np.zeros(len(rows) + 1, np.int64)
    np.cumsum(rows[:, 2], out=indptr[1:])
    found = csr.SparseRows(data[: indptr[-1]], indices[: indptr[-1]], indptr)
    if ordered and not in_order and sums:
        return csr.clean(found, n_vars, where, sum_dtype=sum_dtype)
    return found


def is_cold(request: Request) -> bool:
    """Whether some of the rows have to come from a disk; touches a few of them, in microseconds.

    Asking every archive of many takes longer than to read from the page cache. True where rows are
    not mapped: the archives know better.
    """
    chosen = range(0, len(request.rows), max(1, len(request.rows) // _SAMPLE))
    n_slow = 0
    for i in chosen:
        mapped = request.sources[request.which[i]].mapped
        if mapped is None:
            return True
        data, indices, indptr = mapped.owners
        began = time.perf_counter_ns()
        start = int(indptr[request.rows[i]])
        if start < len(data):
            data[start].tobytes(), indices[start].tobytes()
        n_slow += time.perf_counter_ns() - began > _WARM_NANOSECONDS
        if n_slow > 1:
            return True
    return False


def _locate(request: Request, dtypes: Dtypes) -> tuple[NDArray[np.int64], list[Any]]:
    """Where rows are in memory: n x 4, see ``map_rows``; and what keeps that memory alive.

    What is not mapped, or is of other types than all have in common, is read for good.
    """
    from scdl.kernels import addresses

    sources = request.sources
    out = np.empty((len(request.rows), 4), np.int64)
    arrays = sources.arrays(dtypes)
    owners: list[Any] = [sources]
    for i in np.flatnonzero(arrays[:, 3] == 0).tolist():
        places = np.flatnonzero(request.which == i)
        rows = csr.read(sources[i].store, sources[i].prefix, request.rows[places])
        data = rows.data.astype(dtypes.data, copy=False)
        indices = rows.indices.astype(dtypes.stored, copy=False)
        out[places, 0] = data.ctypes.data + rows.indptr[:-1] * data.itemsize
        out[places, 1] = indices.ctypes.data + rows.indptr[:-1] * indices.itemsize
        out[places, 2] = np.diff(rows.indptr)
        owners.append((data, indices))
    sizes = dtypes.data.itemsize, dtypes.stored.itemsize
    bad = addresses.locate_rows(request.which, request.rows, arrays, *sizes, out)
    if bad >= 0:
        # Reading it says what is wrong.
        damaged = sources[request.which[bad]]
        csr.plan(damaged.store, damaged.prefix, request.rows[bad : bad + 1])
    return out, owners


def _unit(dtype: np.dtype[Any]) -> np.dtype[Any]:
    """What values are copied as, whatever the numbers mean: float16 does not compile."""
    return np.dtype(f"u{dtype.itemsize}")
