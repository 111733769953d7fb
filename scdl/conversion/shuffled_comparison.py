"""Verify that shuffled archives contain all cells before the archives of these are removed.

Each item (a row of a matrix, a vector, a cell of a column) is hashed with its place in the new
order. The sums of the hashes do not depend on the order in which they are read, so both sides are
read from front to back, in bounded memory.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple, TypeAlias

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from scdl.archive import csr
from scdl.archive.elements import Kind, elements_of, graph_keys
from scdl.archive.fields import fields_of
from scdl.archive.schema import DATA, OBS, Info, field_element, field_prefix, graph_array, var_table
from scdl.archive.tables import ROWS_AT_ONCE, NoTable, StoredTable, TableSource
from scdl.conversion.comparison import differing_column, item_bits, missing_elements
from scdl.conversion.joined_rows import clean_rows, graph_rows
from scdl.conversion.row_order import Shuffle
from scdl.conversion.tables import column_converter
from scdl.errors import CollectionError
from scdl.kernels import hashing
from storage_backends.base import ArrayStore
from storage_backends.compute import arrow

_AT_ONCE = 1 << 20
#: Dense elements with these prefixes have a row for each cell.
_OF_CELLS = ("obsm/", "layers/")
#: Added to values, so that zeros count.
_MORE = np.uint64(hashing.GOLDEN)


_Convert: TypeAlias = Callable[[pa.RecordBatch], list[pa.Array]]


class _Part(NamedTuple):
    """An archive of either side, its table of cells, and the new places of its rows."""

    store: ArrayStore
    info: Info
    obs: TableSource
    places: Callable[[NDArray[np.int64]], NDArray[np.int64]]


def check_shuffled(
    stores: Sequence[ArrayStore],
    copies: Sequence[ArrayStore],
    shuffle: Shuffle,
    obs: Sequence[TableSource],
) -> None:
    """Compare archives with the shuffled archives of their cells.

    Parameters
    ----------
    stores
        The original archives.
    copies
        The new archive, or the shards in their order.
    shuffle
        How the cells were shuffled.
    obs
        The tables of cells, one for each of `stores`.

    Raises
    ------
    CollectionError
        They differ, something was not copied, or an element cannot be compared.
    """
    n_obs = sum(Info.from_attrs(store.attrs, store.path).n_obs for store in stores)
    order = Shuffle.order(shuffle, n_obs, copies[0].path)
    obs = order.obs(obs)
    for store in stores:
        if difference := missing_elements(store, copies[0]) or _genes_difference(store, copies):
            raise _incomplete(store.path, copies[0].path, difference)
    ours = _parts(stores, obs, order.places)
    theirs = _parts(copies, None, lambda rows: rows)
    names = list(dict.fromkeys(name for table in obs for name in table.schema.names))
    # Items of both sides are converted to the types that all tables have in common.
    convert = column_converter([part.obs for part in (*ours, *theirs)], names)
    expected, found = (_sums(side, copies[0], names, convert) for side in (ours, theirs))
    for name, total in expected.items():
        if found.get(name) != total:
            raise _incomplete(stores[0].path, copies[0].path, name)


def check_comparable(stores: Sequence[ArrayStore]) -> None:
    """Raise CollectionError if :func:`check_shuffled` cannot compare an element."""
    for store in stores:
        for name in _others(store):
            raise CollectionError(
                f"{store.path}: {name} cannot be compared after a shuffle, so that the archive "
                "must not be removed; leave out destroy_on_copy"
            )


def _others(store: ArrayStore) -> list[str]:
    """Elements that are neither of cells nor compared by name."""
    fields = {*map(field_element, fields_of(store, Info.from_attrs(store.attrs, store.path)))}
    return [
        name
        for name, element in elements_of(store).items()
        if (element.kind is Kind.SPARSE and name not in fields)
        or (element.kind is Kind.DENSE and not name.startswith(_OF_CELLS))
    ]


def _incomplete(path: str, copy: str, difference: str) -> CollectionError:
    return CollectionError(
        f"{copy}: this shuffled copy of {path} and others is incomplete or differs ({difference}); "
        "the sources were not removed"
    )


def _genes_difference(store: ArrayStore, copies: Sequence[ArrayStore]) -> str:
    info = Info.from_attrs(store.attrs, store.path)
    for copy in copies:
        (block,) = Info.from_attrs(copy.attrs, copy.path).blocks
        theirs = StoredTable(copy, var_table(0), block.n_vars)
        for i, own in enumerate(info.blocks):
            ours = StoredTable(store, var_table(i), own.n_vars)
            if ours.num_rows != theirs.num_rows or differing_column(ours, theirs) is not None:
                return f"genes of feature block {i}"
    return ""


def _parts(
    stores: Sequence[ArrayStore],
    obs: Sequence[TableSource] | None,
    places: Callable[[NDArray[np.int64]], NDArray[np.int64]],
) -> list[_Part]:
    parts, first = [], 0
    for i, store in enumerate(stores):
        info = Info.from_attrs(store.attrs, store.path)
        stored = OBS in store.tables
        own = StoredTable(store, OBS, info.n_obs) if stored else NoTable(info.n_obs)

        def places_of(rows: NDArray[np.int64], first: int = first) -> NDArray[np.int64]:
            return places(rows + first)

        parts.append(_Part(store, info, own if obs is None else obs[i], places_of))
        first += info.n_obs
    return parts


def _sums(
    side: Sequence[_Part], copy: ArrayStore, names: Sequence[str], convert: _Convert
) -> dict[str, int]:
    """The sums of hashes of everything about the cells of one side, by name.

    Parameters
    ----------
    copy
        An archive with the dtypes in which values are compared.
    names, convert
        Columns of obs to compare, and the function that converts them to common types.
    """
    sums = {"cells": sum(part.info.n_obs for part in side)}

    def add(name: str, places: NDArray[np.int64], hashes: NDArray[np.uint64]) -> None:
        total = (hashing.hashed(places, 0) * hashes).sum(dtype=np.uint64)
        sums[name] = (sums.get(name, 0) + int(total)) % (1 << 64)

    for part in side:
        store, info = part.store, part.info
        for field in ("", *fields_of(store, info)):
            dtype, row = copy.spec(field_prefix(field) + DATA).dtype, 0
            for rows in clean_rows(store, info, _AT_ONCE, field=field):
                at = np.arange(row, row := row + len(rows.indptr) - 1)
                values = _bits(rows.data.astype(dtype, copy=False))
                name = field_element(field) if field else "values"
                add(name, part.places(at), _hashes(values, rows.indices, rows.indptr))
        for key in graph_keys(store):
            dtype, row = copy.spec(graph_array(key, DATA)).dtype, 0
            for rows in graph_rows(store, info, key, _AT_ONCE):
                at = np.arange(row, row := row + len(rows.indptr) - 1)
                values = _bits(rows.data.astype(dtype, copy=False))
                ids = part.places(rows.indices.astype(np.int64))
                add(f"graph {key!r}", part.places(at), _hashes(values, ids, rows.indptr))
        for name, element in elements_of(store).items():
            if element.kind is Kind.DENSE and name.startswith(_OF_CELLS):
                for at, values in _vectors(store, name):
                    add(name, part.places(at), values)
        for first, last in csr.spans(info.n_obs, ROWS_AT_ONCE):
            places = part.places(np.arange(first, last))
            for name, column in zip(names, convert(part.obs.read(first, last)), strict=True):
                add(f"obs column {name!r}", places, _item_hashes(column))
    return sums


def _vectors(
    store: ArrayStore, name: str
) -> Iterator[tuple[NDArray[np.int64], NDArray[np.uint64]]]:
    """Rows of a dense array, and their hashes."""
    spec = store.spec(name)
    width = int(np.prod(spec.item_shape)) * spec.dtype.itemsize
    for first, last in csr.spans(spec.length, max(1, _AT_ONCE // max(1, width))):
        values = np.frombuffer(store.read(name, first, last).tobytes(), np.uint8)
        indptr = np.arange(last - first + 1) * width
        keys = np.tile(np.arange(width), last - first)
        yield np.arange(first, last), _hashes(values, keys, indptr)


def _item_hashes(column: pa.Array) -> NDArray[np.uint64]:
    """Hashes of the items of a column; those of nulls are 0."""
    values = item_bits(column)
    valid = arrow.to_numpy(values.is_valid().cast(pa.uint8())).astype(np.uint64)
    if pa.types.is_null(values.type):
        return valid
    if pa.types.is_boolean(values.type):
        values = values.cast(pa.uint8())
    if pa.types.is_integer(values.type):
        numbers = _bits(arrow.to_numpy(values.fill_null(0)))
        return hashing.hashed(numbers.astype(np.int64), 1) * valid
    texts = values.cast(pa.large_string()).fill_null("").cast(pa.large_binary())
    _, offsets, data = texts.buffers()
    indptr = np.frombuffer(offsets, np.int64, len(texts) + 1, texts.offset * 8)
    n_bytes = int(indptr[-1] - indptr[0])
    if not n_bytes:
        return valid
    letters = np.frombuffer(data, np.uint8, n_bytes, int(indptr[0]))
    indptr = indptr - indptr[0]
    keys = np.arange(n_bytes) - np.repeat(indptr[:-1], np.diff(indptr))
    return (_hashes(letters, keys, indptr) + np.uint64(1)) * valid


def _bits(values: NDArray[Any]) -> NDArray[Any]:
    """Values as unsigned integers of their size."""
    return values.view(f"u{values.itemsize}")


def _hashes(
    values: NDArray[Any], keys: NDArray[Any], indptr: NDArray[np.int64]
) -> NDArray[np.uint64]:
    """Hash rows of values with keys, such as column ids, in any order within a row."""
    items = hashing.hashed(keys.astype(np.int64), 2) * (values.astype(np.uint64) + _MORE)
    sums = np.zeros(len(items) + 1, np.uint64)
    np.cumsum(items, out=sums[1:])
    return sums[indptr[1:]] - sums[indptr[:-1]]
