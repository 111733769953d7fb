"""Unique names of cells, as anndata makes them, over any number of tables."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from scdl.archive.csr import spans
from scdl.archive.schema import INDEX
from scdl.archive.tables import ROWS_AT_ONCE, TableSource
from storage_backends.compute import arrow

_JOIN = "-"
#: A name that a number was appended to.
_NUMBERED = f"(?s)^(?P<stem>.*){_JOIN}(?P<number>[1-9][0-9]{{0,17}})$"
#: Keys of two independent hashes; equal names have both in common, and no others do.
_KEYS = "0123456789123456", "scdl-store-names"


def with_unique_names(tables: Sequence[TableSource]) -> list[TableSource]:
    """The tables with a number appended to each name that an earlier row has, as in ``name-1``.

    Names and numbers are those of ``obs_names_make_unique`` of anndata for all rows together: the
    number of a name that exists is skipped. Names are read twice, and not kept. Memory is 16 bytes
    per row, and about 60 more per row whose name is repeated; 4 bytes per row stay.
    """
    named = [table for table in tables if INDEX in table.schema.names]
    parts = [_hashes(names, _KEYS[0]) for names in _names(named)]
    hashes = np.concatenate([np.empty(0, np.uint64), *parts])
    ordered = np.sort(hashes)
    repeated = np.unique(ordered[1:][ordered[1:] == ordered[:-1]])
    del ordered
    if not len(repeated):
        return [*tables]
    numbers = _numbers(named, hashes, repeated)
    stops = np.cumsum([0, *(table.num_rows for table in named)])
    own = iter(np.split(numbers, stops[1:-1]))
    return [_Numbered(table, next(own)) if table in named else table for table in tables]


def _names(tables: Sequence[TableSource]) -> Iterator[pa.Array]:
    for table in tables:
        for start, stop in spans(table.num_rows, ROWS_AT_ONCE):
            yield table.column(INDEX, start, stop).cast(pa.large_string())


def _hashes(names: pa.Array, key: str) -> NDArray[np.uint64]:
    from pandas.util import hash_array

    texts = names.fill_null("").to_numpy(zero_copy_only=False)
    return np.asarray(hash_array(texts, hash_key=key, categorize=False), np.uint64)


class _Repeated(NamedTuple):
    """Some names as pairs of hashes.

    Attributes
    ----------
    values
        Row of each name, or the number that follows it in an existing name.
    first, second
        Its hashes.
    """

    values: NDArray[np.int64]
    first: NDArray[np.uint64]
    second: NDArray[np.uint64]


def _numbers(
    tables: Sequence[TableSource], hashes: NDArray[np.uint64], repeated: NDArray[np.uint64]
) -> NDArray[np.uint32]:
    """The number to append to the name of each row, given hashes that occur repeatedly; 0: none."""
    (rows, first, second), stems = _read_repeated(tables, hashes, repeated)
    order = np.lexsort((second, first))
    rows, first, second = rows[order], first[order], second[order]
    is_first = np.ones(len(rows), bool)
    is_first[1:] = (first[1:] != first[:-1]) | (second[1:] != second[:-1])
    starts = np.flatnonzero(is_first)
    group = np.cumsum(is_first) - 1
    # Rows of a name are in ascending order, as lexsort is stable.
    ranks = np.arange(len(rows)) - starts[group]
    if len(stems.values):
        taken = _taken(_Repeated(starts, first[starts], second[starts]), stems, len(rows) + 1)
        base = group * (len(rows) + 1)
        before = np.searchsorted(taken, base + ranks) - np.searchsorted(taken, base)
        ranks = np.where(ranks > 0, ranks + before, 0)
    numbers = np.zeros(len(hashes), np.uint32)
    numbers[rows] = ranks
    return numbers


def _read_repeated(
    tables: Sequence[TableSource], hashes: NDArray[np.uint64], repeated: NDArray[np.uint64]
) -> tuple[_Repeated, _Repeated]:
    """Names that may be repeated, and the numbers that exist behind such names."""
    names_found: list[_Repeated] = []
    stems_found: list[_Repeated] = []
    start = 0
    for names in _names(tables):
        own = hashes[start : start + len(names)]
        at = np.flatnonzero(_among(own, repeated) & names.is_valid().to_numpy(False))
        second = _hashes(names.take(arrow.numbers(at)), _KEYS[1])
        names_found.append(_Repeated(at + start, own[at], second))
        numbered = pc.extract_regex(names, _NUMBERED).drop_null()
        stems = numbered.field("stem")
        first = _hashes(stems, _KEYS[0])
        at = np.flatnonzero(_among(first, repeated))
        numbers = numbered.field("number").take(arrow.numbers(at)).cast(pa.int64())
        second = _hashes(stems.take(arrow.numbers(at)), _KEYS[1])
        stems_found.append(_Repeated(arrow.to_numpy(numbers), first[at], second))
        start += len(names)
    joined = [
        _Repeated(*(np.concatenate(parts) for parts in zip(*found, strict=True)))
        for found in (names_found, stems_found)
    ]
    return joined[0], joined[1]


def _among(values: NDArray[np.uint64], ordered: NDArray[np.uint64]) -> NDArray[np.bool_]:
    """Whether each value is one of a sorted array, which is not empty."""
    at = np.minimum(np.searchsorted(ordered, values), len(ordered) - 1)
    found: NDArray[np.bool_] = ordered[at] == values
    return found


def _taken(groups: _Repeated, stems: _Repeated, most: int) -> NDArray[np.int64]:
    """For each number that exists behind a repeated name: how many smaller ones do not.

    Sorted, and increased by `most` times the number of the group, which is that of its name.
    """
    n = len(groups.first)
    is_stem = np.repeat([False, True], [n, len(stems.first)])
    first, second = (np.concatenate(pair) for pair in zip(groups[1:], stems[1:], strict=True))
    order = np.lexsort((is_stem, second, first))
    # Groups are sorted, so the last one before a stem is the only one that may be equal.
    last = np.maximum.accumulate(np.where(order < n, order, 0))
    behind, group = order[order >= n], last[order >= n]
    is_equal = (first[behind] == first[group]) & (second[behind] == second[group])
    pairs = np.unique(np.stack([group[is_equal], stems.values[behind[is_equal] - n]]), axis=1)
    group, numbers = pairs
    position = np.arange(len(group)) - np.searchsorted(group, group)
    taken: NDArray[np.int64] = group * most + np.minimum(numbers - 1 - position, most - 1)
    return taken


class _Numbered(TableSource):
    """A table with numbers appended to names."""

    def __init__(self, table: TableSource, numbers: NDArray[np.uint32]) -> None:
        self._table, self._numbers = table, numbers
        self.num_rows, self.categories = table.num_rows, table.categories
        self._at = table.schema.get_field_index(INDEX)
        field = table.schema.field(self._at).with_type(pa.large_string())
        self.schema = table.schema.set(self._at, field)

    def column(self, name: str, start: int, stop: int) -> pa.Array:
        column = self._table.column(name, start, stop)
        return self._numbered(column, start, stop) if name == INDEX else column

    def read(self, start: int, stop: int) -> pa.RecordBatch:
        batch = self._table.read(start, stop)
        names = self._numbered(batch.column(self._at), start, stop)
        return batch.set_column(self._at, self.schema.field(self._at), names)

    def _numbered(self, names: pa.Array, start: int, stop: int) -> pa.Array:
        names, numbers = names.cast(pa.large_string()), self._numbers[start:stop]
        texts = arrow.numbers(numbers).cast(pa.large_string())
        joined = pc.binary_join_element_wise(names, texts, pa.scalar(_JOIN, pa.large_string()))
        return pc.if_else(arrow.numbers(numbers > 0), joined, names)
