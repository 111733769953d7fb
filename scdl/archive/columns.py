"""The columns of one table, as arrays and as codes."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any, TypeVar

import numpy as np
from numpy.typing import NDArray

from scdl.archive.frames import dtype_with_nulls
from scdl.archive.schema import INDEX, OBS, names_of
from scdl.errors import FeatureNotFoundError
from storage_backends.capabilities import TableReader
from storage_backends.errors import ArrayNotFoundError

if TYPE_CHECKING:
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

    def chosen(self, names: Sequence[str] | str | None) -> Sequence[str]:
        """The requested column names; None: all columns."""
        return self.names if names is None else names_of(names, "features")

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
