"""What an archive consists of: arrays, tables, attributes."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from storage_backends.errors import ArrayNotFoundError

if TYPE_CHECKING:
    import pyarrow as pa

#: Column of a table that holds the names of its rows, which readers may set apart.
INDEX = "_index"
#: Metadata of a table's schema: what that column is called elsewhere; a backend need not keep it.
INDEX_NAME = b"index_name"
#: Metadata of a field: pandas has the column in a type of its own for nulls, also where there are
#: none; a backend need not keep it.
NULLABLE = {b"nullable": b"1"}

#: Types of numbers that every backend stores.
DTYPES = tuple(map(np.dtype, ("i1", "i2", "i4", "i8", "u1", "u2", "u4", "u8", "f2", "f4", "f8")))


def is_column_type(type_: pa.DataType) -> bool:
    """Whether every backend stores columns of a type, which are those that an AnnData has.

    They are booleans, integers, floats, text, and categories of these; all may have nulls.
    """
    import pyarrow as pa

    types = pa.types
    if str(type_) == "string_view":
        # Arrow makes no categories of these.
        return True
    type_ = type_.value_type if types.is_dictionary(type_) else type_
    is_text = types.is_string(type_) or types.is_large_string(type_)
    is_number = types.is_integer(type_) or types.is_floating(type_)
    return bool(is_text or is_number or types.is_boolean(type_))


@dataclass(frozen=True, slots=True)
class ArraySpec:
    """What is known of a stored array without reading it.

    Parameters
    ----------
    dtype
        Type of one number, little-endian.
    length
        Number of items along the first axis.
    item_shape
        Shape of one item: ``()`` for plain arrays, ``(50,)`` for vectors of 50 numbers.
    below
        Numbers that are read are less, since others raise ArchiveFormatError; None: not checked.
    """

    dtype: np.dtype[Any]
    length: int
    item_shape: tuple[int, ...] = ()
    below: int | None = None

    @property
    def nbytes(self) -> int:
        """Bytes of the array in memory."""
        return self.length * self.dtype.itemsize * math.prod(self.item_shape)


@dataclass(frozen=True, slots=True)
class Contents:
    """What an archive holds, known from when it is opened.

    Parameters
    ----------
    arrays
        Specification of every array by name.
    tables
        Schema of every table by name; a backend may read them when they are asked for.
    attrs
        The JSON object given to ``commit``, or what a foreign archive says of itself. A backend
        that stores the values of a row in another order than they were appended in says
        ``"sorted": false``.
    """

    arrays: Mapping[str, ArraySpec]
    tables: Mapping[str, pa.Schema]
    attrs: Mapping[str, Any]


class Inventory:
    """What is asked of :attr:`contents`, by name."""

    path: str

    if TYPE_CHECKING:

        @property
        def contents(self) -> Contents:
            """What the archive holds."""
            ...

    @property
    def arrays(self) -> Mapping[str, ArraySpec]:
        """Specification of every array by name."""
        return self.contents.arrays

    @property
    def tables(self) -> Sequence[str]:
        """Name of every table."""
        return list(self.contents.tables)

    @property
    def attrs(self) -> Mapping[str, Any]:
        """The attributes of the archive."""
        return self.contents.attrs

    def spec(self, name: str) -> ArraySpec:
        """The specification of one array; ArrayNotFoundError names those there are."""
        try:
            return self.contents.arrays[name]
        except KeyError:
            known = ", ".join(sorted(self.arrays)) or "none"
            raise ArrayNotFoundError(
                f"{self.path}: there is no array {name!r}; it holds: {known}"
            ) from None

    def table_schema(self, name: str) -> pa.Schema:
        """Names and types of a table's columns, without reading it."""
        try:
            return self.contents.tables[name]
        except KeyError:
            raise self.no_table(name) from None

    def no_table(self, name: str) -> ArrayNotFoundError:
        """What to raise for a table that is not there."""
        known = ", ".join(self.tables)
        return ArrayNotFoundError(f"{self.path}: there is no table {name!r}; it holds: {known}")
