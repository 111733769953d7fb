"""The documented feature indexes: columns of var and obs, cell by cell."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np
from numpy.typing import NDArray

from scdl.archive.csr import position
from scdl.archive.frames import dtype_with_nulls, frame_of, with_values
from scdl.archive.gene_names import numbered, space_key
from scdl.archive.schema import INDEX, OBS, Info, names_of, var_table
from scdl.errors import FeatureNotFoundError
from storage_backends import __version__

if TYPE_CHECKING:
    import pandas as pd
    import pyarrow as pa


class TableReader(Protocol):
    """What tables are read from: an archive, or several of them."""

    path: str

    def table_schema(self, name: str, /) -> pa.Schema:
        """Names and types of a table's columns."""

    def read_table(self, name: str, /, columns: Sequence[str] | None = None) -> pa.Table:
        """Some columns of a table, or all of them."""


class Columns:
    """The columns of one table, each read when it is first used.

    Parameters
    ----------
    store, table
        Where they are.
    index_names
        What the names (of cells or genes) may be called as a column. They count as the only column
        of a table that has no other.
    """

    def __init__(self, store: TableReader, table: str, index_names: Sequence[str]) -> None:
        self._store = store
        self._table = table
        self._index_names = index_names
        self._arrays: dict[str, pa.Array] = {}
        self._values: dict[str, NDArray[Any]] = {}
        self._dtypes: dict[str, Any] = {}
        self._names: list[str] | None = None

    @property
    def names(self) -> list[str]:
        """Column names as the documented API lists them."""
        if self._names is None:
            stored = self._store.table_schema(self._table).names
            self._names = [n for n in stored if n != INDEX] or list(
                self._index_names[: len(stored)]
            )
        return self._names

    def array(self, name: str) -> pa.Array:
        """A column as an Arrow array; categorical ones are dictionary arrays.

        Raises
        ------
        FeatureNotFoundError
            There is no such column.
        """
        if name not in self._arrays:
            stored = self._store.table_schema(self._table).names
            key = INDEX if name in self._index_names and name not in stored else name
            if key not in stored:
                raise FeatureNotFoundError(f"{self._store.path}: {self._absent(name)}")
            column = self._store.read_table(self._table, [key]).column(0)
            # The categories of all chunks are the same, so that joining them copies codes only.
            self._arrays[name] = with_values(column.combine_chunks())
        return self._arrays[name]

    def _absent(self, name: str) -> str:
        columns = ", ".join(self.names) or "none"
        if name != INDEX:
            return f"{self._table} has no column {name!r}; it has: {columns}"
        kind = "cells" if self._table == OBS else "genes"
        told = f"the names of the {kind} are not stored, as BioNeMo-SCDL leaves them out; "
        if kind == "cells":
            return f"{told}columns of obs: {columns}"
        return (
            f"{told}name the column of var that tells genes apart, as in "
            f"select_genes(…, gene_column=…), which gives names too; columns: {columns}"
        )

    def values(self, name: str, rows: NDArray[np.int64] | slice) -> NDArray[Any]:
        """Some values of a column: strings and categories as objects.

        Where the column has nulls, integers are float64 with NaN; or objects, as truth values are,
        with None, where a float64 does not hold one of them.
        """
        import pyarrow as pa

        array = self.array(name)
        part = array[rows] if isinstance(rows, slice) else array.take(pa.array(rows))
        return self._numpy(name, part)

    def column(self, name: str) -> NDArray[Any]:
        """All values of a column, read-only, as by :meth:`values`; made once."""
        if name not in self._values:
            values = self._numpy(name, self.array(name)).view()
            values.flags.writeable = False
            self._values[name] = values
        return self._values[name]

    def _numpy(self, name: str, part: pa.Array) -> NDArray[Any]:
        """A part of a column, of a dtype that does not depend on which."""
        import pyarrow as pa

        if name not in self._dtypes:
            self._dtypes[name] = dtype_with_nulls(self.array(name))
        if pa.types.is_dictionary(part.type):
            part = part.dictionary_decode()
        if self._dtypes[name] is object:
            return np.array(part.to_pylist(), object)
        values: NDArray[Any] = part.to_numpy(zero_copy_only=False)
        return values.astype(self._dtypes[name] or values.dtype, copy=False)

    def table(self) -> pa.Table:
        """The whole table; read each time."""
        return self._store.read_table(self._table)

    def frame(self) -> pd.DataFrame:
        """The whole table, indexed by its names; columns with nulls keep their types."""
        return frame_of(self.table())


def spaces_of(store: TableReader, info: Info) -> NDArray[np.int64]:
    """The gene space of each feature block, numbered from 0.

    Blocks share one that have the same gene names in the same order: those to which the archive
    gives one number, or, where it does not say, those whose names are equal.
    """
    if len(info.blocks) == 1:
        return np.zeros(1, np.int64)
    keys: list[Any] = [block.space for block in info.blocks]
    if None in keys:
        keys = [block_space_key(store, i) for i in range(len(keys))]
    return numbered(keys)


def shared_var(store: TableReader, blocks: Iterable[int]) -> pa.Table:
    """The columns that the var tables of feature blocks of one gene space share."""
    from storage_backends.compute.arrow import shared_columns

    return shared_columns(store.read_table(var_table(i)) for i in blocks)


def block_space_key(store: TableReader, block: int) -> str:
    """The :func:`~scdl.archive.gene_names.space_key` of a feature block."""
    name = var_table(block)
    named = INDEX in store.table_schema(name).names
    return space_key(store.read_table(name, [INDEX] if named else None))


def _chosen(columns: Columns, names: Sequence[str] | str | None) -> Sequence[str]:
    """The columns that are asked for; None: all of them."""
    if names is None:
        return columns.names
    return names_of(names, "features")


class VarFeatures:
    """Columns of var by cell, as ``features()`` of the documented API gives them.

    Parameters
    ----------
    store, info
        The archive.
    index_names
        What gene names may be called as a column.
    """

    def __init__(self, store: TableReader, info: Info, index_names: Sequence[str]) -> None:
        self._info = info
        self.blocks = [Columns(store, var_table(i), index_names) for i in range(len(info.blocks))]

    def lookup(
        self, row: int, select_features: Sequence[str] | str | None = None
    ) -> tuple[list[NDArray[Any]], str | None]:
        """Columns of the block that holds a cell, one array of n_vars each, and the block's label.

        Raises
        ------
        RowIndexError
            The row is out of range.
        FeatureNotFoundError
            There is no such column.
        """
        block = self._info.block_of(position(row, self._info.n_obs))
        columns = self.blocks[block]
        names = _chosen(columns, select_features)
        return [columns.column(name) for name in names], self._info.blocks[block].label

    def __len__(self) -> int:
        """Feature blocks."""
        return len(self._info.blocks)

    def number_vars_at_row(self, row: int) -> int:
        """Genes of the block that holds a cell."""
        return self._info.blocks[self._info.block_of(position(row, self._info.n_obs))].n_vars

    def column_dims(self) -> list[int]:
        """Genes of each block."""
        return [block.n_vars for block in self._info.blocks]

    def number_of_values(self) -> list[int]:
        """Cells times genes of each block."""
        starts = [0, *(block.stop for block in self._info.blocks)]
        return [
            (b.stop - start) * b.n_vars for start, b in zip(starts, self._info.blocks, strict=False)
        ]

    def number_of_rows(self) -> int:
        """Cells."""
        return self._info.n_obs

    def version(self) -> str:
        """Version of this package."""
        return __version__


class ObsFeatures:
    """Columns of obs by cell, as ``obs_features()`` of the documented API gives them."""

    def __init__(self, store: TableReader, info: Info, index_names: Sequence[str]) -> None:
        self._info = info
        self.columns = Columns(store, OBS, index_names)

    def lookup(
        self, row: int, select_features: Sequence[str] | str | None = None
    ) -> tuple[list[Any], str | None]:
        """Values of one cell, and the label of the block that holds it."""
        at = position(row, self._info.n_obs)
        names = _chosen(self.columns, select_features)
        values = [self.columns.values(name, slice(at, at + 1))[0] for name in names]
        return values, self._info.blocks[self._info.block_of(at)].label

    def __getitem__(
        self, rows: int | slice
    ) -> tuple[list[Any], str | None] | tuple[list[dict[str, NDArray[Any]]], list[str | None]]:
        """One cell: its values and label; a slice: a dict of columns and a label for each block."""
        if not isinstance(rows, slice):
            return self.lookup(rows)
        selected = np.arange(*rows.indices(self._info.n_obs))
        block_of = np.searchsorted([b.stop for b in self._info.blocks], selected, side="right")
        found, labels = [], []
        for block in np.unique(block_of):
            part = selected[block_of == block]
            found.append({name: self.columns.values(name, part) for name in self.columns.names})
            labels.append(self._info.blocks[block].label)
        return found, labels

    def __len__(self) -> int:
        """Blocks of cells with the same columns: one, as obs is one table of all cells."""
        return 1

    def number_vars_at_row(self, row: int) -> int:
        """Columns that a cell has."""
        position(row, self._info.n_obs)
        return len(self.columns.names)

    def column_dims(self) -> list[int]:
        """Number of columns."""
        return [len(self.columns.names)]

    def number_of_values(self) -> list[int]:
        """Cells times columns."""
        return [self._info.n_obs * len(self.columns.names)]

    def number_of_rows(self) -> int:
        """Cells."""
        return self._info.n_obs

    def version(self) -> str:
        """Version of this package."""
        return __version__
