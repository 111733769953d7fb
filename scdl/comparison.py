"""Whether an archive has all that another one was copied from, before that one may go."""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from scdl import csr
from scdl.concatenate import clean_rows
from scdl.errors import CollectionError
from scdl.schema import (
    DATA,
    INDEX,
    INDICES,
    INDPTR,
    MATRIX,
    OBS,
    Info,
    dense_vectors,
    graph_array,
    keys,
    obsm_array,
    var_table,
)
from scdl.tables import ROWS_AT_ONCE, StoredTable, TableSource, alike
from storage_backends.base import ArrayStore

_AT_ONCE = 1 << 20


def check_copied(
    store: ArrayStore, copy: ArrayStore, start: int, obs: TableSource | None = None
) -> None:
    """Compare the cells of an archive with those from row `start` on of one made of it.

    Reads all of both, in bounded memory. Values, column ids and the lengths of rows are compared
    by their sums, everything else item by item.

    Parameters
    ----------
    store, copy
        The archive, and the one that was made.
    obs
        The table of cells as it was copied; default that of `store`.

    Raises
    ------
    CollectionError
        They differ, or something of the archive was not copied.
    """
    info, made = (Info.from_attrs(one.attrs, one.path) for one in (store, copy))
    stop = start + info.n_obs
    if stop > made.n_obs:
        what = f"cells: expected {stop} or more, found {made.n_obs}"
    else:
        what = (
            _left_out(store, copy)
            or _of_matrix(store, info, copy, made, start)
            or _of_genes(store, info, copy, made, start)
            or _of_obs(obs or _obs(store, info), copy, start)
            or _of_vectors(store, copy, start)
            or _of_graphs(store, copy, start)
        )
    if what:
        raise CollectionError(
            f"{copy.path}: this is not all of {store.path} ({what}); the sources are kept"
        )


def _left_out(store: ArrayStore, copy: ArrayStore) -> str:
    """Names of what there is no place for in an archive of several, or was not alike in all."""
    there = {*copy.arrays, *copy.sparse, *copy.elements}
    held = {*store.arrays, *store.sparse, *store.elements}
    # An element may be kept in another form: a matrix by columns, by rows.
    missing = sorted({name.removesuffix("/indptr") for name in held - there if _is_named(name)})
    return f"left out: {', '.join(missing)}" if missing else ""


def _is_named(name: str) -> bool:
    return name not in MATRIX and not name.endswith(("/data", "/indices"))


class _Sums(NamedTuple):
    """What must be the same of cells wherever they are stored; sums modulo 2**64."""

    n_obs: int
    values: int
    data: int
    indices: int
    rows: int


def _of_matrix(store: ArrayStore, info: Info, copy: ArrayStore, made: Info, start: int) -> str:
    dtype = copy.spec(DATA).dtype
    expected = _sums(store, info, 0, info.n_obs, dtype)
    found = _sums(copy, made, start, start + info.n_obs, dtype)
    for name in _Sums._fields:
        if getattr(found, name) != getattr(expected, name):
            return f"{name}: {getattr(expected, name)} became {getattr(found, name)}"
    return ""


def _sums(store: ArrayStore, info: Info, start: int, stop: int, dtype: np.dtype[Any]) -> _Sums:
    """Counts and sums over rows, which do not depend on how they are read."""
    values, data, indices, lengths = 0, 0, 0, 0
    unit = np.dtype(f"u{dtype.itemsize}")
    row = 0
    for part in clean_rows(store, info, _AT_ONCE, start, stop):
        n = len(part.indptr) - 1
        # Of the bits: sums of floats would depend on their order.
        data += int(part.data.astype(dtype, copy=False).view(unit).sum(dtype=np.uint64))
        indices += int(part.indices.sum(dtype=np.uint64))
        values += len(part.data)
        counts = np.diff(part.indptr).astype(np.uint64)
        lengths += int((counts * np.arange(row, row + n, dtype=np.uint64)).sum())
        row += n
    modulus = 1 << 64
    return _Sums(row, values, data % modulus, indices % modulus, lengths % modulus)


def _of_genes(store: ArrayStore, info: Info, copy: ArrayStore, made: Info, start: int) -> str:
    first = 0
    for i, block in enumerate(info.blocks):
        if block.stop > first:
            there = made.block_of(start + first)
            tables = store.read_table(var_table(i)), copy.read_table(var_table(there))
            if not tables[0].equals(tables[1]):
                return f"genes of feature block {i}"
        first = block.stop
    return ""


def _obs(store: ArrayStore, info: Info) -> TableSource | None:
    return StoredTable(store, OBS, info.n_obs) if OBS in store.tables else None


def _of_obs(obs: TableSource | None, copy: ArrayStore, start: int) -> str:
    if obs is None or not obs.schema.names:
        return ""
    there = _obs(copy, Info.from_attrs(copy.attrs, copy.path))
    if there is None or not set(obs.schema.names) <= set(there.schema.names):
        return "obs: columns are missing"
    columns = alike([obs, there], obs.schema.names)
    for first, last in csr.spans(obs.num_rows, ROWS_AT_ONCE):
        ours, theirs = obs.read(first, last), there.read(start + first, start + last)
        for name, *both in zip(obs.schema.names, columns(ours), columns(theirs), strict=True):
            if not _bits(both[0]).equals(_bits(both[1])):
                return "names of cells" if name == INDEX else f"obs column {name!r}"
    return ""


def _bits(values: pa.Array) -> pa.Array:
    """Values that equal each other where they are the same, as NaN do not."""
    if pa.types.is_dictionary(values.type):
        values = values.dictionary_decode()
    if pa.types.is_floating(values.type):
        return values.view(f"uint{values.type.bit_width}")
    return values


def _of_vectors(store: ArrayStore, copy: ArrayStore, start: int) -> str:
    for key in dense_vectors(store):
        spec = store.spec(obsm_array(key))
        rows = max(1, _AT_ONCE // max(1, int(np.prod(spec.item_shape))))
        for first, last in csr.spans(spec.length, rows):
            ours = store.read(obsm_array(key), first, last)
            theirs = copy.read(obsm_array(key), start + first, start + last)
            if ours.tobytes() != theirs.tobytes():
                return f"obsm {key!r}"
    return ""


def _of_graphs(store: ArrayStore, copy: ArrayStore, start: int) -> str:
    for key in keys(store.arrays, "graphs"):
        names = {part: graph_array(key, part) for part in MATRIX}
        n_obs = store.spec(names[INDPTR]).length - 1
        at = int(copy.read(names[INDPTR], start, start + 1)[0])
        for first, last in csr.spans(n_obs + 1, _AT_ONCE):
            ours = _wide(store.read(names[INDPTR], first, last))
            if not np.array_equal(
                ours + at, _wide(copy.read(names[INDPTR], start + first, start + last))
            ):
                return f"graph {key!r}"
        for first, last in csr.spans(store.spec(names[DATA]).length, _AT_ONCE):
            there = [copy.read(names[part], at + first, at + last) for part in (DATA, INDICES)]
            weights = store.read(names[DATA], first, last).astype(there[0].dtype)
            neighbors = _wide(store.read(names[INDICES], first, last)) + start
            if weights.tobytes() != there[0].tobytes() or not np.array_equal(
                neighbors, _wide(there[1])
            ):
                return f"graph {key!r}"
    return ""


def _wide(numbers: NDArray[Any]) -> NDArray[np.int64]:
    return numbers.astype(np.int64)
