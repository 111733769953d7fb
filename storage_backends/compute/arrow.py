"""Arrow arrays from NumPy arrays and Python objects, without pandas.

``pyarrow.array`` always imports pandas, which takes longer than converting a small file.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray


def numbers(values: NDArray[Any], absent: NDArray[np.bool_] | None = None) -> pa.Array:
    """Arrow array of numbers or booleans; shares the memory of `values` if possible.

    Parameters
    ----------
    values
        One-dimensional array.
    absent
        Mask of null values; None: no nulls.
    """
    (n,) = values.shape
    native = np.ascontiguousarray(values, values.dtype.newbyteorder("="))
    data = _bitmap(native) if native.dtype == bool else pa.py_buffer(native)
    valid = None if absent is None or not absent.any() else _bitmap(~absent)
    return pa.Array.from_buffers(pa.from_numpy_dtype(native.dtype), n, [valid, data])


def to_numpy(array: pa.Array) -> NDArray[Any]:
    """The numbers of an array without nulls, whose memory is shared."""
    dtype = np.dtype(array.type.to_pandas_dtype())
    if not len(array):
        return np.empty(0, dtype)
    return np.frombuffer(array.buffers()[1], dtype, len(array), array.offset * dtype.itemsize)


def filled(values: pa.Array, missing: int) -> pa.Array:
    """Integers with `missing` in place of nulls; Arrow imports pandas to fill in one of Python."""
    return values.fill_null(numbers(np.full(1, missing, values.type.to_pandas_dtype()))[0])


def text(values: Sequence[str | bytes]) -> pa.Array:
    """Strings or UTF-8 bytes as ``large_string``; UnicodeDecodeError for other bytes."""
    encoded = [value if isinstance(value, bytes) else value.encode() for value in values]
    offsets = np.zeros(len(encoded) + 1, np.int64)
    np.cumsum(np.fromiter(map(len, encoded), np.int64, len(encoded)), out=offsets[1:])
    joined = b"".join(encoded)
    if not joined.isascii():
        # Validate each string on its own: invalid ones may be valid when joined.
        for value in encoded:
            value.decode()
    buffers = [None, pa.py_buffer(offsets), pa.py_buffer(joined)]
    return pa.Array.from_buffers(pa.large_string(), len(encoded), buffers)


def is_text(type_: pa.DataType) -> bool:
    """Whether a type is one of Arrow's string types."""
    return str(type_) in ("string", "large_string", "string_view")


def equal_columns(one: pa.ChunkedArray, other: pa.ChunkedArray) -> bool:
    """Whether two columns have the same type and values; NaN equals NaN.

    Categorical columns are compared by their values, not by their codes.
    """
    return bool(one.type == other.type and _comparable(one).equals(_comparable(other)))


def shared_columns(tables: Iterable[pa.Table]) -> pa.Table:
    """The columns that have the same name, type and values in all tables of equal length."""
    shared: pa.Table | None = None
    for table in tables:
        if shared is None:
            shared = table
            continue
        names = [
            name
            for name in shared.schema.names
            if name in table.schema.names and equal_columns(shared[name], table[name])
        ]
        metadata = shared.schema.metadata
        metadata = metadata if metadata == table.schema.metadata else None
        shared = shared.select(names).replace_schema_metadata(metadata)
    if shared is None:
        raise ValueError("there are no tables")
    return shared


def _comparable(column: pa.ChunkedArray) -> pa.ChunkedArray:
    """Decode categories and reinterpret floats as bits, so that NaNs compare equal."""
    if pa.types.is_dictionary(column.type):
        chunks = [chunk.dictionary_decode() for chunk in column.chunks]
        column = pa.chunked_array(chunks, column.type.value_type)
    if pa.types.is_floating(column.type):
        bits = pa.from_numpy_dtype(f"u{column.type.bit_width // 8}")
        column = pa.chunked_array([chunk.view(bits) for chunk in column.chunks], bits)
    return column


def without_missing(values: pa.Array) -> pa.Array:
    """The values that are neither null nor NaN."""
    return pc.filter(values, pc.invert(is_missing(values)))


class Coder:
    """Converts codes of categories to those of a categorical column that is valid in pandas.

    Categories become unique and non-null: codes of a null or NaN category become null, and codes
    of a repeated category become those of its first occurrence.

    Attributes
    ----------
    values
        The valid categories.
    """

    def __init__(self, categories: pa.Array) -> None:
        if pa.types.is_floating(categories.type):
            # Arrow distinguishes 0.0 and -0.0; adding zero makes them equal.
            categories = _widened(categories)
            zeros = np.zeros(len(categories), categories.type.to_pandas_dtype())
            categories = pc.add(categories, numbers(zeros))
        present = categories
        if categories.null_count or pa.types.is_floating(categories.type):
            present = without_missing(categories)
        unique = pc.unique(present)
        is_valid = len(unique) == len(categories)
        self.values: pa.Array = categories if is_valid else unique
        self._positions = None if is_valid else positions_in(categories, unique)

    def codes(self, codes: pa.Array) -> pa.Array:
        """Codes of the valid categories."""
        if self._positions is None:
            return codes
        return self._positions.take(codes).cast(codes.type)

    def array(self, codes: pa.Array, *, ordered: bool) -> pa.DictionaryArray:
        """The categorical column."""
        # The codes are those of a valid column, or were checked.
        return pa.DictionaryArray.from_arrays(
            self.codes(codes), self.values, ordered=ordered, safe=False
        )


def category_type(type_: pa.DataType) -> pa.DataType:
    """The type of the categories of a :class:`Coder` for values of a type."""
    return pa.float32() if pa.types.is_float16(type_) else type_


def positions_in(values: pa.Array, among: pa.Array) -> pa.Array:
    """Position of each value in `among`; null for values that are not in it."""
    return pc.index_in(_widened(values), _widened(among))


def taken(values: pa.Array, at: pa.Array) -> pa.Array:
    """Numbers at positions; null where the position or the number is null."""
    if values.null_count or at.null_count or not len(values):
        return values.take(at)
    # NumPy takes a fourth of the time.
    return numbers(np.take(to_numpy(values), to_numpy(at)))


def _widened(values: pa.Array) -> pa.Array:
    """Values with float16 widened to float32, as Arrow cannot compare float16."""
    return values.cast(pa.float32()) if pa.types.is_float16(values.type) else values


def is_missing(values: pa.Array) -> pa.Array:
    """Mask of the values that are null or NaN."""
    if not pa.types.is_floating(values.type):
        return values.is_null()
    return _widened(values).is_null(nan_is_null=True)


def _bitmap(values: NDArray[np.bool_]) -> pa.Buffer:
    return pa.py_buffer(np.packbits(values, bitorder="little"))
