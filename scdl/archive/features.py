"""The feature indexes of the documented API: columns of var and obs by cell."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import TYPE_CHECKING, Any, TypeVar

import numpy as np
from numpy.typing import NDArray

from scdl.archive.csr import position
from scdl.archive.frames import dtype_with_nulls, frame_of
from scdl.archive.gene_names import number_keys, space_key
from scdl.archive.schema import INDEX, OBS, Info, names_of, var_table
from scdl.errors import FeatureNotFoundError
from storage_backends import __version__
from storage_backends.capabilities import TableReader
from storage_backends.errors import ArrayNotFoundError

if TYPE_CHECKING:
    import pandas as pd
    import pyarrow as pa

    from scdl.archive.tables import Encoded

_T = TypeVar("_T")


class Columns:
    """The columns of one table, each read on first use.

    Parameters
    ----------
    store, table
        The archive and the name of the table.
    index_names
        Column names that refer to the index (names of cells or genes). The index is listed as a
        column only if the table has no other.
    read_encoded
        Reads a column of labels as codes; default: reads it and encodes it.
    """

    def __init__(
        self,
        store: TableReader,
        table: str,
        index_names: Sequence[str],
        read_encoded: Callable[[str], Encoded | pa.Array] | None = None,
    ) -> None:
        self._store = store
        self._table = table
        self._index_names = index_names
        self._read_encoded = read_encoded or self._encode
        self._arrays: dict[str, pa.Array] = {}
        self._encoded: dict[str, Encoded | pa.Array] = {}
        self._values: dict[str, NDArray[Any]] = {}
        self._dtypes: dict[str, Any] = {}
        self._names: list[str] | None = None

    @property
    def names(self) -> list[str]:
        """Column names, as listed by the documented API."""
        if self._names is None:
            stored = self._store.table_schema(self._table).names
            self._names = [n for n in stored if n != INDEX] or list(
                self._index_names[: len(stored)]
            )
        return self._names

    def array(self, name: str) -> pa.Array:
        """A column as an Arrow array; categorical columns are dictionary arrays.

        Raises
        ------
        FeatureNotFoundError
            There is no such column.
        """
        import pyarrow as pa

        from scdl.archive.tables import as_array, encode

        if name not in self._arrays:
            if name not in self._encoded:
                column = self._found(name, self._read)
                if not pa.types.is_dictionary(column.type):
                    self._arrays[name] = column.combine_chunks()
                    return self._arrays[name]
                self._encoded[name] = encode(column)
            self._arrays[name] = as_array(self._encoded[name])
        return self._arrays[name]

    def encoded(self, name: str) -> Encoded | pa.Array:
        """A column as codes if it holds labels, else its values; errors as for :meth:`array`."""
        if name not in self._encoded:
            self._encoded[name] = self._found(name, self._read_encoded)
        return self._encoded[name]

    def _found(self, name: str, read: Callable[[str], _T]) -> _T:
        """Read a column; raise FeatureNotFoundError if it does not exist."""
        key, index_names = name, self._index_names
        if name in index_names and name not in self._store.table_schema(self._table).names:
            key = INDEX
        try:
            return read(key)
        except ArrayNotFoundError:
            raise FeatureNotFoundError(f"{self._store.path}: {self._absent(name)}") from None

    def _encode(self, key: str) -> Encoded | pa.Array:
        from scdl.archive.tables import encode

        return encode(self._read(key))

    def _read(self, key: str) -> pa.ChunkedArray:
        return self._store.read_table(self._table, [key]).column(0)

    def _absent(self, name: str) -> str:
        columns = ", ".join(self.names) or "none"
        if name != INDEX:
            return f"{self._table} has no column {name!r}; it has: {columns}"
        kind = "cells" if self._table == OBS else "genes"
        problem = f"the names of the {kind} are not stored, since BioNeMo-SCDL omits them; "
        if kind == "cells":
            return f"{problem}columns of obs: {columns}"
        return (
            f"{problem}pass the column of var that identifies genes, as in "
            f"select_genes(…, gene_column=…); columns of var: {columns}"
        )

    def values(self, name: str, rows: NDArray[np.int64] | slice) -> NDArray[Any]:
        """Some values of a column; strings and categories have dtype object.

        Integers of a column with nulls are converted to float64 with NaN. If float64 cannot
        represent one of them, or the column is boolean, values are objects with None for nulls.
        """
        import pyarrow as pa

        array = self.array(name)
        part = array[rows] if isinstance(rows, slice) else array.take(pa.array(rows))
        return self._numpy(name, part)

    def column(self, name: str) -> NDArray[Any]:
        """All values of a column as a cached, read-only array; see :meth:`values`."""
        if name not in self._values:
            values = self._numpy(name, self.array(name)).view()
            values.flags.writeable = False
            self._values[name] = values
        return self._values[name]

    def _numpy(self, name: str, part: pa.Array) -> NDArray[Any]:
        """Convert part of a column to NumPy; the dtype is that of the whole column."""
        import pyarrow as pa

        if name not in self._dtypes:
            self._dtypes[name] = dtype_with_nulls(self.array(name))
        if pa.types.is_dictionary(part.type):
            part = part.dictionary_decode()
        if self._dtypes[name] is object:
            return np.array(part.to_pylist(), object)
        values: NDArray[Any] = part.to_numpy(zero_copy_only=False)
        return values.astype(self._dtypes[name] or values.dtype, copy=False)

    def table(self, columns: Sequence[str] | None = None, *, index: bool = True) -> pa.Table:
        """Read the whole table, or some columns with or without the index; it is not cached.

        Raises
        ------
        FeatureNotFoundError
            There is no such column.
        """
        if columns is None and index:
            return self._store.read_table(self._table)
        wanted = self.names if columns is None else list(dict.fromkeys(columns))
        has_index = index and INDEX in self._store.table_schema(self._table).names
        try:
            return self._store.read_table(self._table, [INDEX, *wanted] if has_index else wanted)
        except ArrayNotFoundError:
            missing = next(name for name in wanted if name not in self.names)
            raise FeatureNotFoundError(f"{self._store.path}: {self._absent(missing)}") from None

    def frame(self) -> pd.DataFrame:
        """The whole table as a data frame with its index; columns with nulls keep their types."""
        return frame_of(self.table())


def spaces_of(store: TableReader, info: Info) -> NDArray[np.int64]:
    """The gene space of each feature block, numbered from 0.

    Blocks with the same gene names in the same order share a gene space. The numbers stored in the
    archive are used if every block has one; otherwise the gene names are compared.
    """
    if len(info.blocks) == 1:
        return np.zeros(1, np.int64)
    keys: list[Any] = [block.space for block in info.blocks]
    if None in keys:
        keys = [block_space_key(store, i) for i in range(len(keys))]
    return number_keys(keys)


def shared_var(store: TableReader, blocks: Iterable[int]) -> pa.Table:
    """The var columns shared by feature blocks of one gene space."""
    from storage_backends.compute.arrow import shared_columns

    return shared_columns(store.read_table(var_table(i)) for i in blocks)


def block_space_key(store: TableReader, block: int) -> str:
    """The :func:`~scdl.archive.gene_names.space_key` of a feature block."""
    name = var_table(block)
    named = INDEX in store.table_schema(name).names
    return space_key(store.read_table(name, [INDEX] if named else None))


def _chosen(columns: Columns, names: Sequence[str] | str | None) -> Sequence[str]:
    """The requested column names; None: all columns."""
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
        Column names that refer to the gene names.
    """

    def __init__(self, store: TableReader, info: Info, index_names: Sequence[str]) -> None:
        self._info = info
        self.blocks = [Columns(store, var_table(i), index_names) for i in range(len(info.blocks))]

    def lookup(
        self, row: int, select_features: Sequence[str] | str | None = None
    ) -> tuple[list[NDArray[Any]], str | None]:
        """Columns of the feature block of a cell, one array of n_vars each, and the block's label.

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
        """Number of feature blocks."""
        return len(self._info.blocks)

    def number_vars_at_row(self, row: int) -> int:
        """Number of genes in the feature block of a cell."""
        return self._info.blocks[self._info.block_of(position(row, self._info.n_obs))].n_vars

    def column_dims(self) -> list[int]:
        """Number of genes of each feature block."""
        return [block.n_vars for block in self._info.blocks]

    def number_of_values(self) -> list[int]:
        """Number of cells times number of genes, for each feature block."""
        starts = [0, *(block.stop for block in self._info.blocks)]
        return [
            (b.stop - start) * b.n_vars for start, b in zip(starts, self._info.blocks, strict=False)
        ]

    def number_of_rows(self) -> int:
        """Number of cells."""
        return self._info.n_obs

    def version(self) -> str:
        """Version of this package."""
        return __version__


class ObsFeatures:
    """Columns of obs by cell, as ``obs_features()`` of the documented API gives them.

    Parameters
    ----------
    store, info
        The archive.
    index_names
        Column names that refer to the names of the cells.
    read_encoded
        As for :class:`Columns`.
    """

    def __init__(
        self,
        store: TableReader,
        info: Info,
        index_names: Sequence[str],
        read_encoded: Callable[[str], Encoded | pa.Array] | None = None,
    ) -> None:
        self._info = info
        self.columns = Columns(store, OBS, index_names, read_encoded)

    def lookup(
        self, row: int, select_features: Sequence[str] | str | None = None
    ) -> tuple[list[Any], str | None]:
        """Values of one cell, and the label of its feature block."""
        at = position(row, self._info.n_obs)
        names = _chosen(self.columns, select_features)
        values = [self.columns.values(name, slice(at, at + 1))[0] for name in names]
        return values, self._info.blocks[self._info.block_of(at)].label

    def __getitem__(
        self, rows: int | slice
    ) -> tuple[list[Any], str | None] | tuple[list[dict[str, NDArray[Any]]], list[str | None]]:
        """Values and label of one cell; for a slice, columns and label of each feature block."""
        if not isinstance(rows, slice):
            return self.lookup(rows)
        selected = np.arange(*rows.indices(self._info.n_obs))
        block_of = np.searchsorted([b.stop for b in self._info.blocks], selected, side="right")
        parts, labels = [], []
        for block in np.unique(block_of):
            part = selected[block_of == block]
            parts.append({name: self.columns.values(name, part) for name in self.columns.names})
            labels.append(self._info.blocks[block].label)
        return parts, labels

    def __len__(self) -> int:
        """Number of blocks: always 1, since obs is one table of all cells."""
        return 1

    def number_vars_at_row(self, row: int) -> int:
        """Number of obs columns; `row` is only checked."""
        position(row, self._info.n_obs)
        return len(self.columns.names)

    def column_dims(self) -> list[int]:
        """Number of columns."""
        return [len(self.columns.names)]

    def number_of_values(self) -> list[int]:
        """Number of cells times number of columns."""
        return [self._info.n_obs * len(self.columns.names)]

    def number_of_rows(self) -> int:
        """Number of cells."""
        return self._info.n_obs

    def version(self) -> str:
        """Version of this package."""
        return __version__
