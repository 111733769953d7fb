"""Comparison of an archive with its copy, before the archive is removed."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa

from scdl.archive import csr
from scdl.archive.elements import Kind, elements_of, graph_keys
from scdl.archive.fields import fields_of
from scdl.archive.schema import (
    DATA,
    INDEX,
    INDICES,
    INDPTR,
    MATRIX,
    OBS,
    Info,
    field_element,
    field_prefix,
    graph_array,
    var_table,
)
from scdl.archive.stored_rows import StoredRows
from scdl.archive.tables import ROWS_AT_ONCE, StoredTable, TableSource
from scdl.conversion.joined_rows import clean_rows
from scdl.conversion.losses import is_kept
from scdl.conversion.tables import column_converter
from scdl.errors import CollectionError
from storage_backends.base import ArrayStore

_AT_ONCE = 1 << 20


def check_copied(
    store: ArrayStore, copy: ArrayStore, start: int, obs: TableSource | None = None
) -> None:
    """Compare the cells of an archive with those of its copy, from row `start` of the copy.

    Reads both completely, in bounded memory. Values, column ids and row lengths are compared by
    their sums, everything else item by item.

    Parameters
    ----------
    store, copy
        The original archive and its copy.
    obs
        The table of cells as it was copied; default: that of `store`.

    Raises
    ------
    CollectionError
        They differ, or something was not copied.
    """
    info, copied = (Info.from_attrs(one.attrs, one.path) for one in (store, copy))
    stop = start + info.n_obs
    if stop > copied.n_obs:
        difference = f"cells: expected {stop} or more, found {copied.n_obs}"
    else:
        difference = (
            missing_elements(store, copy)
            or _matrix_difference(store, info, copy, copied, start)
            or _field_difference(store, info, copy, copied, start)
            or _genes_difference(store, info, copy, copied, start)
            or _obs_difference(obs or _obs_table(store, info), copy, start)
            or _dense_difference(store, copy, start)
            or _sparse_difference(store, info, copy)
            or _graph_difference(store, copy, start)
        )
    if difference:
        raise CollectionError(
            f"{copy.path}: this copy of {store.path} is incomplete or differs ({difference}); the "
            "sources were not removed"
        )


def missing_elements(store: ArrayStore, copy: ArrayStore) -> str:
    """Message about elements that are missing in the copy; empty if there are none."""
    # Compared by name only, since the copy may store an element in another form.
    missing = [*sorted(elements_of(store).keys() - elements_of(copy).keys()), *store.unread]
    return f"left out: {', '.join(missing)}" if missing else ""


def _field_difference(
    store: ArrayStore, info: Info, copy: ArrayStore, copied: Info, start: int
) -> str:
    there = fields_of(copy, copied)
    for name in fields_of(store, info):
        element = field_element(name)
        if name not in there:
            return f"{element} is not a field"
        if difference := _matrix_difference(store, info, copy, copied, start, name):
            return f"{element}: {difference}"
    return ""


class _Sums(NamedTuple):
    """Counts and checksums of rows, independent of how they are stored; sums modulo 2**64."""

    n_obs: int
    values: int
    data: int
    indices: int
    rows: int


def _matrix_difference(
    store: ArrayStore, info: Info, copy: ArrayStore, copied: Info, start: int, field: str = ""
) -> str:
    dtype, stop = copy.spec(field_prefix(field) + DATA).dtype, start + info.n_obs
    expected = _sums(clean_rows(store, info, _AT_ONCE, field=field), dtype)
    found = _sums(clean_rows(copy, copied, _AT_ONCE, start, stop, field=field), dtype)
    for name in _Sums._fields:
        if getattr(found, name) != getattr(expected, name):
            return f"{name}: {getattr(expected, name)} became {getattr(found, name)}"
    return ""


def _sums(parts: Iterator[csr.SparseRows], dtype: np.dtype[Any]) -> _Sums:
    """Compute counts and sums that do not depend on how rows are split into parts."""
    values, data, indices, lengths = 0, 0, 0, 0
    unit, row = np.dtype(f"u{dtype.itemsize}"), 0
    for part in parts:
        n = len(part.indptr) - 1
        # Sum the bits as integers: sums of floats would depend on their order.
        data += int(part.data.astype(dtype, copy=False).view(unit).sum(dtype=np.uint64))
        indices += int(part.indices.sum(dtype=np.uint64))
        values += len(part.data)
        counts = np.diff(part.indptr).astype(np.uint64)
        lengths += int((counts * np.arange(row, row + n, dtype=np.uint64)).sum())
        row += n
    return _Sums(row, *(n % (1 << 64) for n in (values, data, indices, lengths)))


def _genes_difference(
    store: ArrayStore, info: Info, copy: ArrayStore, copied: Info, start: int
) -> str:
    first = 0
    for i, block in enumerate(info.blocks):
        if block.stop > first:
            other = copied.block_of(start + first)
            ours = StoredTable(store, var_table(i), block.n_vars)
            theirs = StoredTable(copy, var_table(other), copied.blocks[other].n_vars)
            if ours.num_rows != theirs.num_rows or differing_column(ours, theirs) is not None:
                return f"genes of feature block {i}"
        first = block.stop
    return ""


def _obs_table(store: ArrayStore, info: Info) -> TableSource | None:
    return StoredTable(store, OBS, info.n_obs) if OBS in store.tables else None


def _obs_difference(obs: TableSource | None, copy: ArrayStore, start: int) -> str:
    if obs is None or not obs.schema.names:
        return ""
    copied = _obs_table(copy, Info.from_attrs(copy.attrs, copy.path))
    if copied is None:
        return "obs is missing"
    name = differing_column(obs, copied, start)
    if name is None:
        return ""
    if name not in copied.schema.names:
        return f"obs: columns are missing, such as {name!r}"
    return "names of cells" if name == INDEX else f"obs column {name!r}"


def differing_column(ours: TableSource, theirs: TableSource, start: int = 0) -> str | None:
    """First column that is missing or different in `theirs`, from its row `start` on."""
    names: list[str] = ours.schema.names
    for name in names:
        if name not in theirs.schema.names:
            return name
    columns = column_converter([ours, theirs], names)
    for first, last in csr.spans(ours.num_rows, ROWS_AT_ONCE):
        rows = ours.read(first, last), theirs.read(start + first, start + last)
        one, other = map(columns, rows)
        for i, name in enumerate(names):
            if not item_bits(one[i]).equals(item_bits(other[i])):
                return name
    return None


def item_bits(values: pa.Array) -> pa.Array:
    """Values in a form in which NaN compare equal: floats as the integers of their bits."""
    if pa.types.is_dictionary(values.type):
        values = values.dictionary_decode()
    if pa.types.is_floating(values.type):
        return values.view(f"uint{values.type.bit_width}")
    return values


def _dense_difference(store: ArrayStore, copy: ArrayStore, start: int) -> str:
    for name, element in elements_of(store).items():
        if element.kind is not Kind.DENSE:
            continue
        spec = store.spec(name)
        rows = max(1, _AT_ONCE // max(1, int(np.prod(spec.item_shape))))
        for first, last in csr.spans(spec.length, rows):
            ours = store.read(name, first, last)
            if ours.tobytes() != copy.read(name, start + first, start + last).tobytes():
                return name
    return ""


def _sparse_difference(store: ArrayStore, info: Info, copy: ArrayStore) -> str:
    """Compare other sparse matrices, which only the copy of a single archive has."""
    fields = set(map(field_element, fields_of(store, info)))
    for name, element in elements_of(store).items():
        if element.kind is Kind.SPARSE and name not in fields:
            dtype = copy.spec(f"{name}/{DATA}").dtype
            sums = [_sums(_read_by_axis(side, name), dtype) for side in (store, copy)]
            if store.sparse[name] != copy.sparse[name] or sums[0] != sums[1]:
                return name
    return ""


def _read_by_axis(store: ArrayStore, name: str) -> Iterator[csr.SparseRows]:
    """Read a sparse matrix by its compressed axis (rows or columns), with sorted indices."""
    sparse, prefix = store.sparse[name], f"{name}/"
    n, width = sparse.shape if sparse.format == "csr" else sparse.shape[::-1]
    for first, last in csr.row_spans(store, prefix, n, _AT_ONCE):
        rows = StoredRows.of(store, prefix, np.arange(first, last)).read()
        yield csr.clean(rows, width, store.path)


def _graph_difference(store: ArrayStore, copy: ArrayStore, start: int) -> str:
    for key in graph_keys(store):
        names = {part: graph_array(key, part) for part in MATRIX}
        n_obs = store.spec(names[INDPTR]).length - 1
        at = int(copy.read(names[INDPTR], start, start + 1)[0])
        for first, last in csr.spans(n_obs + 1, _AT_ONCE):
            ours = store.read(names[INDPTR], first, last).astype(np.int64) + at
            theirs = copy.read(names[INDPTR], start + first, start + last).astype(np.int64)
            if not np.array_equal(ours, theirs):
                return f"graph {key!r}"
        for first, last in csr.spans(store.spec(names[DATA]).length, _AT_ONCE):
            copied = [copy.read(names[part], at + first, at + last) for part in (DATA, INDICES)]
            weights = store.read(names[DATA], first, last)
            neighbors = store.read(names[INDICES], first, last).astype(np.int64) + start
            if (
                not is_kept(weights, copied[0].dtype)
                or weights.astype(copied[0].dtype).tobytes() != copied[0].tobytes()
                or not np.array_equal(neighbors, copied[1].astype(np.int64))
            ):
                return f"graph {key!r}"
    return ""
