"""Consistency checks between the arrays and tables of an archive, piece by piece."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from scdl.archive import csr
from scdl.archive.elements import Kind, dense_vectors, elements_of
from scdl.archive.features import spaces_of
from scdl.archive.fields import fields_of
from scdl.archive.schema import (
    DATA,
    INDEX,
    INDICES,
    INDPTR,
    OBS,
    Info,
    field_element,
    obsm_array,
    var_table,
)
from scdl.errors import ScdlError
from storage_backends.base import ArrayStore
from storage_backends.capabilities import Finding
from storage_backends.errors import COPY_AGAIN

#: Values, offsets and table rows to read at once.
_VALUES = 1 << 22
_OFFSETS = 1 << 20
_ROWS = 1 << 16


class Check(NamedTuple):
    """One independent check, which any thread may run.

    Attributes
    ----------
    size
        Number of values that it reads.
    run
        Reads the values and returns the findings.
    """

    size: int
    run: Callable[[], list[Finding]]


@dataclass(frozen=True)
class _Matrix:
    """A sparse matrix in three arrays."""

    prefix: str
    #: Number of rows, or of columns if the matrix is stored by columns.
    n_rows: int
    #: Pairs ``(stop, below)``: up to row `stop`, ids are less than `below`.
    limits: Sequence[tuple[int, int]]
    is_sorted: bool = False


def total_size(store: ArrayStore, *, read_all: bool) -> int:
    """Approximate number of values that all checks read."""
    ids = [f"{prefix}{INDICES}" for prefix in _prefixes(store)]
    n_ids = sum(store.arrays[name].length for name in ids if name in store.arrays)
    return n_ids + (sum(check.size for check in _check_remaining_arrays(store)) if read_all else 0)


def checks(store: ArrayStore, *, read_all: bool) -> Iterator[Check]:
    """Yield all checks of an archive; errors become checks that fail.

    Parameters
    ----------
    read_all
        Whether to read all other arrays too, so that the backend's own checks at reading run.
    """
    try:
        info = Info.of(store)
    except ScdlError as error:
        yield _failed(error)
        return
    for matrix in _matrices(store, info):
        try:
            yield from _check_matrix(store, matrix)
        except (ScdlError, OSError) as error:
            yield _failed(error)
    yield from _check_vectors(store, info.n_obs)
    yield from _check_tables(store, info, read_all)
    if read_all:
        yield from _check_remaining_arrays(store)


def _matrices(store: ArrayStore, info: Info) -> Iterator[_Matrix]:
    n_obs = info.n_obs
    genes = [(block.stop, block.n_vars) for block in info.blocks]
    yield _Matrix("", n_obs, genes, info.is_sorted)
    fields = {field_element(name): field for name, field in fields_of(store, info).items()}
    for name, element in elements_of(store).items():
        if name in fields:
            yield _Matrix(element.array, n_obs, genes, fields[name].is_sorted)
        elif element.kind is Kind.GRAPH:
            yield _Matrix(element.array, n_obs, [(n_obs, n_obs)])
        elif element.kind is Kind.SPARSE:
            sparse = store.sparse[name]
            n_rows, below = sparse.shape if sparse.format == "csr" else sparse.shape[::-1]
            yield _Matrix(element.array, n_rows, [(n_rows, below)])


def _prefixes(store: ArrayStore) -> list[str]:
    """Prefixes of the array names of all sparse matrices."""
    sparse = (Kind.GRAPH, Kind.SPARSE)
    return ["", *(e.array for e in elements_of(store).values() if e.kind in sparse)]


def _check_matrix(store: ArrayStore, matrix: _Matrix) -> Iterator[Check]:
    """Check the offsets now, and yield checks of the ids, whose ranges depend on the offsets."""
    names = [matrix.prefix + part for part in (DATA, INDICES, INDPTR)]
    missing = [name for name in names if name not in store.arrays]
    if missing:
        yield _wrong(f"{store.path}: {', '.join(missing)} is missing; {COPY_AGAIN}")
        return
    values, ids, offsets = (store.spec(name).length for name in names)
    if values != ids or offsets != matrix.n_rows + 1:
        yield _wrong(
            f"{store.path}: {names[0]} has {values:,} entries, {names[1]} {ids:,} and {names[2]} "
            f"{offsets:,}; expected as many values as ids, and {matrix.n_rows + 1:,} offsets; "
            f"{COPY_AGAIN}"
        )
        return
    first = 0
    last_offset = 0
    for stop, below in matrix.limits:
        for start, end in csr.spans(stop - first, _OFFSETS):
            bounds = store.read(names[2], first + start, first + end + 1)
            bad = _first_bad_offset(bounds, last_offset, ids)
            if bad is not None:
                yield _wrong(
                    f"{store.path}: {names[2]}: expected ascending offsets from 0 to {ids:,}, "
                    f"found {int(bounds[bad]):,} at row {first + start + bad:,}; {COPY_AGAIN}"
                )
                return
            numbers = bounds.astype(np.int64)
            last_offset = int(numbers[-1])
            for a, b in csr.groups(numbers, _VALUES):
                rows = first + start + a, first + start + b
                size = int(numbers[b] - numbers[a])
                yield Check(size, partial(_check_ids, store, matrix, rows, below))
        first = stop
    if last_offset != ids:
        yield _wrong(
            f"{store.path}: {names[2]}: expected offsets up to {ids:,}, found {last_offset:,} at "
            f"the end; {COPY_AGAIN}"
        )


def _first_bad_offset(offsets: NDArray[Any], first: int, largest: int) -> int | None:
    """Index of the first offset that is descending or too large; offset 0 must be `first`."""
    if int(offsets[0]) != first:
        return 0
    wrong = np.flatnonzero((offsets[1:] < offsets[:-1]) | (offsets[1:] > largest))
    return int(wrong[0]) + 1 if len(wrong) else None


def _check_ids(
    store: ArrayStore, matrix: _Matrix, rows: tuple[int, int], below: int
) -> list[Finding]:
    from scdl.kernels import order as order_kernels

    name = matrix.prefix + INDICES
    offsets = store.read(matrix.prefix + INDPTR, rows[0], rows[1] + 1).astype(np.int64)
    for start in range(int(offsets[0]), int(offsets[-1]), _VALUES):
        # Only a single row can exceed one piece. Pieces overlap by one id to compare neighbours.
        begin = max(start - 1, int(offsets[0]))
        ids = store.read(name, begin, min(start + _VALUES, int(offsets[-1])))
        within = np.clip(offsets - begin, 0, len(ids))
        bad = int(order_kernels.misplaced(ids, within, below, matrix.is_sorted))
        if bad >= 0:
            row = rows[0] + int(np.searchsorted(within, bad, side="right")) - 1
            expected = f"ids from 0 to {below - 1:,}" + (", ascending" if matrix.is_sorted else "")
            return [
                Finding(
                    f"{store.path}: {name}: expected {expected}, found {int(ids[bad]):,} "
                    f"in row {row:,}, at position {begin + bad:,}; {COPY_AGAIN}"
                )
            ]
    return []


def _check_vectors(store: ArrayStore, n_obs: int) -> Iterator[Check]:
    for name in map(obsm_array, dense_vectors(store)):
        spec = store.spec(name)
        if spec.length != n_obs:
            yield _wrong(
                f"{store.path}: {name}: expected {n_obs:,} rows, one for each cell, found "
                f"{spec.length:,}; {COPY_AGAIN}"
            )


def _check_tables(store: ArrayStore, info: Info, read_all: bool) -> Iterator[Check]:
    expected = {var_table(i): block.n_vars for i, block in enumerate(info.blocks)}
    if OBS in store.tables:
        expected[OBS] = info.n_obs
    stated = [block.space for block in info.blocks]
    if len(stated) > 1 and None not in stated:
        yield Check(0, partial(_check_spaces, store, info))
    for name, n_rows in expected.items():
        if name not in store.tables:
            yield _wrong(f"{store.path}: the table {name} is missing; {COPY_AGAIN}")
        else:
            yield Check(0, partial(_check_table, store, name, n_rows, read_all))


def _check_spaces(store: ArrayStore, info: Info) -> list[Finding]:
    """Compare the gene spaces that an archive states with the names of its genes."""
    without = replace(info, blocks=tuple(replace(block, space=None) for block in info.blocks))
    stated, found = (spaces_of(store, one).tolist() for one in (info, without))
    if stated == found:
        return []
    return [
        Finding(
            f"{store.path}: expected feature blocks of the stated gene spaces {stated}, but their "
            f"gene names are of {found}; {COPY_AGAIN}"
        )
    ]


def _check_table(store: ArrayStore, name: str, n_rows: int, read_all: bool) -> list[Finding]:
    """Check the number of rows, and read the index, which may be stored separately, or all."""
    has_index = INDEX in store.table_schema(name).names
    columns = None if read_all else [INDEX] if has_index else []
    # Read tables of genes at once: the backend may have to reorder all rows for each piece.
    at_once = _ROWS if name == OBS else max(n_rows, 1)
    stored_rows = store.read_table(name, [], 0, None).num_rows
    if stored_rows != n_rows:
        return [
            Finding(
                f"{store.path}: the table {name}: expected {n_rows:,} rows, found {stored_rows:,}; "
                f"{COPY_AGAIN}"
            )
        ]
    for start, stop in csr.spans(n_rows, at_once):
        store.read_table(name, columns, start, stop)
    return []


def _check_remaining_arrays(store: ArrayStore) -> Iterator[Check]:
    """Yield checks that read all arrays which the other checks do not read."""
    checked = {prefix + part for prefix in _prefixes(store) for part in (INDICES, INDPTR)}
    for name, spec in store.arrays.items():
        if name not in checked:
            width = max(1, int(np.prod(spec.item_shape, dtype=np.int64)))
            for start, stop in csr.spans(spec.length, max(1, _VALUES // width)):
                yield Check((stop - start) * width, partial(_read_range, store, name, start, stop))


def _read_range(store: ArrayStore, name: str, start: int, stop: int) -> list[Finding]:
    store.read(name, start, stop)
    return []


def _wrong(message: str) -> Check:
    """A check that returns a known finding."""
    return Check(0, lambda: [Finding(message)])


def _failed(error: Exception) -> Check:
    """A check that raises an error that was caught before."""

    def run() -> list[Finding]:
        raise error

    return Check(0, run)
