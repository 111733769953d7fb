"""Names of cells when several archives are concatenated."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any, Literal, get_args

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from scdl.archive.schema import INDEX, unique_names
from scdl.archive.tables import TableSource
from scdl.errors import CollectionError

#: Keep names, require that they are unique, or prefix them with the name of their archive.
CellNames = Literal["keep", "unique", "prefix"]


def archive_names(paths: Iterable[str]) -> list[str]:
    """Unique names of archives, made from the names of their directories."""
    return unique_names(os.path.basename(path.rstrip("/")) for path in paths)


def rename_cells(
    tables: Callable[[Sequence[str] | None], Sequence[TableSource]],
    paths: Sequence[str],
    cell_names: CellNames,
) -> Sequence[TableSource]:
    """Tables of cells, with the names that the cells get in the concatenated archive.

    Parameters
    ----------
    tables
        Returns the obs table of each archive, or some of its columns; names may be missing.
    paths
        Path of each archive.
    cell_names
        ``"keep"``: keep names as they are. ``"unique"``: the same, but two cells with the same name
        are an error. ``"prefix"``: prepend the name of the archive, as in ``archive-name``; names
        that still coincide are an error.

    Raises
    ------
    CollectionError
        `cell_names` is none of these, or two cells have the same name.
    """
    if cell_names not in get_args(CellNames):
        raise CollectionError(
            f"cell_names must be 'keep', 'unique' or 'prefix', not {cell_names!r}"
        )
    if cell_names == "keep":
        return tables(None)

    def renamed(columns: Sequence[str] | None) -> Sequence[TableSource]:
        selected = tables(columns)
        if cell_names == "unique":
            return selected
        pairs = zip(selected, archive_names(paths), strict=True)
        return [_Prefixed(table, f"{name}-") for table, name in pairs]

    _check_unique(renamed([INDEX]), paths, cell_names)
    return renamed(None)


class _Prefixed(TableSource):
    """A table with a prefix before each name."""

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
        prefix, separator = (pa.scalar(text, field.type) for text in (self._prefix, ""))
        names = pc.binary_join_element_wise(prefix, batch.column(at), separator)
        return batch.set_column(at, field, names)


def _check_unique(
    tables: Sequence[TableSource], paths: Sequence[str], cell_names: CellNames
) -> None:
    """Raise CollectionError if two cells have the same name; takes about 16 bytes per cell."""
    from pandas.util import hash_array

    empty = np.empty(0, np.uint64)
    hashes = np.concatenate([empty, *(hash_array(names) for _, names in _names(tables))])
    hashes.sort()
    suspected = np.unique(hashes[1:][hashes[1:] == hashes[:-1]])
    if len(suspected) == 0:
        return
    # Equal hashes may belong to different names, so compare the names themselves.
    seen: dict[str, int] = {}
    for number, names in _names(tables):
        for name in names[np.isin(hash_array(names), suspected)].tolist():
            if name in seen:
                raise CollectionError(_repeated(name, paths[seen[name]], paths[number], cell_names))
            seen[name] = number


def _repeated(name: str, first: str, second: str, cell_names: CellNames) -> str:
    """Message about a name that two cells have."""
    if first == second:
        return (
            f"the cell name {name!r} is in {first} more than once; pass cell_names='keep' to allow "
            "repeated names"
        )
    problem = f"the cell name {name!r} is in {first} and in {second}"
    if cell_names == "prefix":
        return f"{problem} even with the names of the archives as prefixes; rename an archive"
    return f"{problem}; pass cell_names='prefix' to prepend the name of the archive to each"


def _names(tables: Sequence[TableSource]) -> Iterator[tuple[int, NDArray[Any]]]:
    """Yield batches of cell names, each with the number of its table."""
    for number, table in enumerate(tables):
        if INDEX not in table.schema.names:
            continue
        for batch in table.batches():
            yield number, batch.column(INDEX).drop_null().to_numpy(zero_copy_only=False)
