"""Names of the cells of several archives that become one."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any, Literal, get_args

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from scdl.archive.schema import INDEX, distinct
from scdl.archive.tables import ROWS_AT_ONCE, TableSource
from scdl.errors import CollectionError

#: As they are, each once in all archives, or with the name of their archive in front.
CellNames = Literal["keep", "unique", "prefix"]


def archive_names(paths: Iterable[str]) -> list[str]:
    """What archives are called: the names of their directories, each once."""
    return distinct(os.path.basename(path.rstrip("/")) for path in paths)


def named(
    tables: Callable[[Sequence[str] | None], Sequence[TableSource]],
    paths: Sequence[str],
    cell_names: CellNames,
) -> Sequence[TableSource]:
    """Tables of cells, with the names that they get in an archive of all of them.

    Parameters
    ----------
    tables
        Gives of each archive its obs, or some columns of it; may lack names.
    paths
        Where each archive is.
    cell_names
        ``"keep"``: as they are. ``"unique"``: the same, and an error where two cells have one
        name. ``"prefix"``: with the name of their archive in front, ``archive-name``, and an error
        where two are the same all the same.

    Raises
    ------
    CollectionError
        `cell_names` is none of these, or two cells have one name.
    """
    if cell_names not in get_args(CellNames):
        raise CollectionError(
            f"cell_names must be 'keep', 'unique' or 'prefix', not {cell_names!r}"
        )
    if cell_names == "keep":
        return tables(None)

    def renamed(columns: Sequence[str] | None) -> Sequence[TableSource]:
        found = tables(columns)
        if cell_names == "unique":
            return found
        pairs = zip(found, archive_names(paths), strict=True)
        return [_Prefixed(table, f"{name}-") for table, name in pairs]

    _check_unique(renamed([INDEX]), paths, cell_names)
    return renamed(None)


class _Prefixed(TableSource):
    """A table with something before each name."""

    def __init__(self, table: TableSource, prefix: str) -> None:
        self._table, self._prefix = table, prefix
        self.num_rows, self.schema, self.categories = table.num_rows, table.schema, table.categories

    def column(self, name: str, start: int, stop: int) -> pa.Array:
        if name == INDEX:
            return self.read(start, stop).column(name)
        return self._table.column(name, start, stop)

    def read(self, start: int, stop: int) -> pa.RecordBatch:
        batch = self._table.read(start, stop)
        if INDEX not in batch.schema.names:
            return batch
        at = batch.schema.get_field_index(INDEX)
        field = batch.schema.field(at)
        prefix, nothing = (pa.scalar(text, field.type) for text in (self._prefix, ""))
        names = pc.binary_join_element_wise(prefix, batch.column(at), nothing)
        return batch.set_column(at, field, names)


def _check_unique(
    tables: Sequence[TableSource], paths: Sequence[str], cell_names: CellNames
) -> None:
    """CollectionError where two cells have one name; about 16 bytes a cell of memory."""
    from pandas.util import hash_array

    nothing = np.empty(0, np.uint64)
    hashes = np.concatenate([nothing, *(hash_array(names) for _, names in _names(tables))])
    hashes.sort()
    suspected = np.unique(hashes[1:][hashes[1:] == hashes[:-1]])
    if len(suspected) == 0:
        return
    # Different names may have one hash.
    seen: dict[str, int] = {}
    for number, names in _names(tables):
        for name in names[np.isin(hash_array(names), suspected)].tolist():
            if name in seen:
                raise CollectionError(_told(name, paths[seen[name]], paths[number], cell_names))
            seen[name] = number


def _told(name: str, first: str, second: str, cell_names: CellNames) -> str:
    if first == second:
        return (
            f"the cell name {name!r} is in {first} more than once; cell_names='keep' takes names "
            "as they are"
        )
    what = f"the cell name {name!r} is in {first} and in {second}"
    if cell_names == "prefix":
        return f"{what}, with the names of these archives in front; rename one of the archives"
    return f"{what}; cell_names='prefix' puts the name of its archive before each"


def _names(tables: Sequence[TableSource]) -> Iterator[tuple[int, NDArray[Any]]]:
    """Names of cells, some at a time, with the number of their table."""
    for number, table in enumerate(tables):
        if INDEX not in table.schema.names:
            continue
        for start in range(0, table.num_rows, ROWS_AT_ONCE):
            batch = table.read(start, min(start + ROWS_AT_ONCE, table.num_rows))
            yield number, batch.column(INDEX).drop_null().to_numpy(zero_copy_only=False)
