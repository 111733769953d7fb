"""Tables of cells and genes that lie beside a matrix, joined to it by name."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, TypeAlias

import pyarrow as pa
import pyarrow.compute as pc

from scdl.archive.gene_names import strings
from scdl.archive.schema import INDEX
from scdl.archive.tables import Extended, TableInMemory, TableSource
from scdl.errors import OptionError, SourceError, SourceNotFoundError
from scdl.sources.anndata_object import storable
from scdl.sources.base import Source
from scdl.sources.damage import readable_by
from scdl.sources.gene_tables import SEPARATORS, read_parquet, suffix_of
from scdl.sources.gene_vocabulary import index_of_pandas
from scdl.sources.wrapped import Wrapped
from storage_backends.base import is_column_type
from storage_backends.paths import Path, path_of

if TYPE_CHECKING:
    import pandas as pd

#: A table with the names of cells or genes, or the path of one.
Table: TypeAlias = "Path | pd.DataFrame | pa.Table"

_SEPARATORS = {**SEPARATORS, ".txt": "\t"}
#: Errors of pandas and Arrow for damaged files.
_DAMAGED = (OSError, EOFError, ValueError, pa.ArrowException)


class Beside:
    """Tables of cells and genes, which are joined to those of sources.

    Parameters
    ----------
    obs, var
        As for :func:`scdl.convert`.

    Raises
    ------
    SourceError, SourceNotFoundError
        A file is missing, or is not a table.
    OptionError
        Names repeat.
    """

    def __init__(self, obs: Table | None, var: Table | None) -> None:
        given = {"obs": obs, "var": var}
        self._tables = {n: _Named(n, table) for n, table in given.items() if table is not None}

    def joined(self, source: Source) -> Source:
        """The source with the columns of the tables."""
        return _WithTables(source, self._tables) if self._tables else source


class _WithTables(Wrapped):
    """A source with further columns of obs and var."""

    def __init__(self, source: Source, tables: dict[str, _Named]) -> None:
        super().__init__(source)
        self._var, obs = TableInMemory(source.var()), tables.get("obs")
        self._unread, self._unmatched = [*source.unread], [*source.unmatched]
        if obs is not None:
            self.obs = self._join(source.obs, obs)
        if (var := tables.get("var")) is not None:
            joined = self._join(self._var, var)
            self._var = TableInMemory(pa.Table.from_batches([joined.read(0, joined.num_rows)]))

    def _join(self, table: TableSource, other: _Named) -> TableSource:
        self._unread += other.left_out
        table, unmatched = other.join(table, self.path)
        self._unmatched += unmatched
        return table

    def var(self) -> pa.Table:
        return self._var.table

    @property
    def unread(self) -> Sequence[str]:
        return self._unread

    @property
    def unmatched(self) -> Sequence[str]:
        return self._unmatched


class _Named:
    """A table whose rows have names."""

    def __init__(self, kind: str, given: Table) -> None:
        self._kind, self._what = kind, "cells" if kind == "obs" else "genes"
        self._where = f"the table {kind}="
        if hasattr(given, "columns") and hasattr(given, "index"):
            found, self.left_out = storable(kind, given)
            table = found.table
        else:
            if not isinstance(given, pa.Table):
                self._where = given = path_of(given, "a table, or the path of one")
            table, self.left_out = self._with_names(given)
        self._table = table.unify_dictionaries().combine_chunks()
        self._names = strings(pc.drop_null(self._table[INDEX].combine_chunks()))
        repeated = self._names.value_counts()
        repeated = repeated.filter(pc.greater(repeated.field("counts"), 1))
        if len(repeated):
            raise OptionError(
                f"{self._where}: the name {repeated[0]['values'].as_py()!r} occurs "
                f"{repeated[0]['counts']} times; a join needs each name once"
            )

    def _with_names(self, given: str | pa.Table) -> tuple[pa.Table, list[str]]:
        """A table with its names, and the columns of other kinds than those of archives."""
        table = _read_file(given) if isinstance(given, str) else given
        if not isinstance(table, pa.Table):
            found, left_out = storable(self._kind, table)
            return found.table, left_out
        if not table.num_columns:
            raise SourceError(f"{self._where}: the table has no columns, expected one with names")
        # The index that pandas stored, else the first column.
        names = index_of_pandas(table.schema) or table.schema.names[0]
        columns = {INDEX: strings(pa.concat_arrays(table[names].chunks or [pa.nulls(0)]))}
        others = [field for field in table.schema if field.name not in (names, INDEX)]
        columns |= {f.name: table[f.name] for f in others if is_column_type(f.type)}
        left_out = [f"{self._kind}/{f.name}" for f in others if f.name not in columns]
        return pa.table(columns), left_out

    def join(self, table: TableSource, path: str) -> tuple[TableSource, list[str]]:
        """A table with the columns of this one, null in rows without a match.

        Returns
        -------
        table, unmatched
            The table, and a sentence on what did not match, if anything.
        """
        fields = [field for field in self._table.schema if field.name != INDEX]
        if both := sorted({field.name for field in fields} & {*table.schema.names}):
            raise OptionError(
                f"{path}: {self._kind} has {', '.join(both)} already, as {self._where} does; "
                "rename the columns in one of them, or leave them out"
            )
        if INDEX not in table.schema.names:
            raise SourceError(f"{path}: its {self._what} have no names to join {self._where} by")
        own = strings(table.column(INDEX, 0, table.num_rows))
        places = pc.index_in(own, self._table[INDEX].combine_chunks().cast(own.type))
        n_found, n_used = len(own) - places.null_count, len(pc.unique(places.drop_null()))
        if not n_found and len(own) and len(self._names):
            raise SourceError(
                f"{path}: none of its {self._what}, such as {own[0].as_py()!r}, is in "
                f"{self._where}, which has such as {self._names[0].as_py()!r}; the names are the "
                "index of a data frame, else the first column"
            )
        for field in fields:
            values = self._table[field.name].combine_chunks()
            table = Extended(table, field, _Taken(values, places))
        if n_found == len(own) and n_used == self._table.num_rows:
            return table, []
        return table, [
            f"{n_found:,} of {len(own):,} {self._what} are in {self._where}, and "
            f"{self._table.num_rows - n_used:,} of its {self._table.num_rows:,} rows are of no "
            f"{self._what[:-1]}"
        ]


class _Taken:
    """Values at positions, by range of positions."""

    def __init__(self, values: pa.Array, places: pa.Array) -> None:
        self._values, self._places = values, places

    def __call__(self, start: int, stop: int) -> pa.Array:
        return self._values.take(self._places.slice(start, stop - start))


def _read_file(path: str) -> pd.DataFrame | pa.Table:
    """Read Parquet, or text in columns, of which the first has names."""
    suffix = suffix_of(path)
    if suffix not in _SEPARATORS and suffix != ".parquet":
        known = ", ".join([*_SEPARATORS, ".parquet"])
        raise SourceError(f"{path}: expected a table in a file that ends in one of {known}")
    with readable_by("cannot be read as a table", path, errors=_DAMAGED):
        try:
            return read_parquet(path) if suffix == ".parquet" else _read_text(path, suffix)
        except FileNotFoundError as error:
            raise SourceNotFoundError(f"{path}: the file does not exist") from error


def _read_text(path: str, suffix: str) -> pd.DataFrame:
    import pandas as pd

    def read(**options: Any) -> pd.DataFrame:
        frame: pd.DataFrame = pd.read_csv(path, sep=_SEPARATORS[suffix], **options)
        return frame

    first = read(nrows=1)
    # R writes no header above the names of rows.
    names = [*([] if isinstance(first.index, pd.RangeIndex) else [""]), *first.columns]
    # Names that are numbers would lose leading zeros, and the name NA would be a missing one.
    frame = read(names=names, header=0, converters={0: "|{}".format})
    return frame.set_index(frame.pop(names[0]).astype(str).str[1:])
