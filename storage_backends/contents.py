"""Contents of an archive: arrays, tables and attributes."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, TypeAlias

import numpy as np
from numpy.typing import NDArray

from storage_backends.errors import ArrayNotFoundError, RangeError

if TYPE_CHECKING:
    import pyarrow as pa

#: Positions of items, rows or archives.
Positions = NDArray[np.int64]
#: Names of columns; None: all.
ColumnNames: TypeAlias = "Sequence[str] | None"

#: Column of a table with its row names; readers may treat it separately.
INDEX = "_index"
#: Key in the metadata of a table's schema: original name of that column. Backends may omit it.
INDEX_NAME = b"index_name"
#: Metadata of a field: the column has a nullable type in pandas, even if no value is null.
#: Backends may omit it.
NULLABLE = {b"nullable": b"1"}

#: Dtypes that every backend stores.
DTYPES = tuple(map(np.dtype, ("i1", "i2", "i4", "i8", "u1", "u2", "u4", "u8", "f2", "f4", "f8")))


def is_column_type(type_: pa.DataType) -> bool:
    """Whether every backend stores columns of a type, which are the types of an AnnData.

    They are booleans, integers, floats, text, and categories of these; all may have nulls.

    Examples
    --------
    >>> import pyarrow as pa
    >>> from storage_backends.contents import is_column_type
    >>> is_column_type(pa.string()), is_column_type(pa.date32())
    (True, False)
    """
    import pyarrow as pa

    types = pa.types
    if str(type_) == "string_view":
        # Arrow does not support categories of these types.
        return True
    type_ = type_.value_type if types.is_dictionary(type_) else type_
    is_text = types.is_string(type_) or types.is_large_string(type_)
    is_number = types.is_integer(type_) or types.is_floating(type_)
    return bool(is_text or is_number or types.is_boolean(type_))


@dataclass(frozen=True, slots=True)
class ArraySpec:
    """Specification of a stored array, known without reading it.

    Parameters
    ----------
    dtype
        Type of one number, little-endian.
    length
        Number of items along the first axis.
    item_shape
        Shape of one item: ``()`` for plain arrays, ``(50,)`` for vectors of 50 numbers.
    below
        Exclusive upper bound of the numbers; reading larger ones raises ArchiveFormatError. None:
        not checked.

    Examples
    --------
    >>> spec = data.store.spec("data")
    >>> spec.dtype, spec.length, spec.nbytes
    (dtype('float32'), 11, 44)
    """

    dtype: np.dtype[Any]
    length: int
    item_shape: tuple[int, ...] = ()
    below: int | None = None

    @property
    def nbytes(self) -> int:
        """Size of the array in memory, in bytes."""
        return self.length * self.dtype.itemsize * math.prod(self.item_shape)


@dataclass(frozen=True, slots=True)
class Contents:
    """Contents of an archive, known when it is opened.

    Parameters
    ----------
    arrays
        Specification of every array by name.
    tables
        Schema of every table by name; a backend may read them lazily.
    attrs
        The JSON object given to ``commit``, or the attributes of a foreign archive. A backend that
        stores the values of a row in a different order than they were appended sets
        ``"sorted": false``.

    Examples
    --------
    >>> contents = data.store.contents
    >>> contents.arrays["data"].length, list(contents.tables)
    (11, ['obs', 'var/0'])
    """

    arrays: Mapping[str, ArraySpec]
    tables: Mapping[str, pa.Schema]
    attrs: Mapping[str, Any]


@dataclass(frozen=True, slots=True)
class Sparse:
    """A sparse matrix other than the expression matrix, in three arrays of an archive.

    Parameters
    ----------
    format
        ``"csr"`` or ``"csc"``: whether ``<name>/indptr`` delimits rows or columns.
    shape
        Number of rows and columns.

    Examples
    --------
    >>> scdl.open("cells.zarr").store.sparse["layers/spliced"]
    Sparse(format='csr', shape=(6, 4))
    """

    format: str
    shape: tuple[int, int]


class Inventory:
    """Access to ``contents`` and to whole arrays by name.

    Examples
    --------
    >>> data.store.tables
    ['obs', 'var/0']
    >>> data.store.table_schema("obs").names
    ['_index', 'cell_type', 'donor']
    """

    path: str

    if TYPE_CHECKING:

        @property
        def contents(self) -> Contents:
            """Contents of the archive."""
            ...

        def read_ranges(
            self, name: str, starts: Positions, stops: Positions, out: NDArray[Any]
        ) -> None:
            """Read ranges of an array."""
            ...

    @property
    def arrays(self) -> Mapping[str, ArraySpec]:
        """Specification of every array by name."""
        return self.contents.arrays

    @property
    def tables(self) -> Sequence[str]:
        """Names of the tables."""
        return list(self.contents.tables)

    @property
    def attrs(self) -> Mapping[str, Any]:
        """The attributes of the archive."""
        return self.contents.attrs

    def spec(self, name: str) -> ArraySpec:
        """The specification of one array; ArrayNotFoundError lists the existing ones."""
        try:
            return self.contents.arrays[name]
        except KeyError:
            known = ", ".join(sorted(self.arrays)) or "none"
            raise ArrayNotFoundError(
                f"{self.path}: there is no array {name!r}; it has: {known}"
            ) from None

    def read(self, name: str, start: int = 0, stop: int | None = None) -> NDArray[Any]:
        """Read items ``[start, stop)`` of one array into new memory."""
        spec = self.spec(name)
        stop = spec.length if stop is None else stop
        if not 0 <= start <= stop <= spec.length:
            raise RangeError(
                f"{self.path}: {name}: range [{start}, {stop}) is not within [0, {spec.length}]"
            )
        out = np.empty((stop - start, *spec.item_shape), spec.dtype)
        self.read_ranges(name, np.array([start]), np.array([stop]), out)
        return out

    def table_schema(self, name: str) -> pa.Schema:
        """Names and types of a table's columns, without reading it."""
        try:
            return self.contents.tables[name]
        except KeyError:
            raise self.no_table(name) from None

    def no_table(self, name: str) -> ArrayNotFoundError:
        """The error for a table that does not exist."""
        known = ", ".join(self.tables)
        return ArrayNotFoundError(f"{self.path}: there is no table {name!r}; it has: {known}")
