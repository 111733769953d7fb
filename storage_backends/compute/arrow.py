"""Arrow arrays of what NumPy and Python hold.

``pyarrow.array`` imports pandas whatever it is given, which takes longer than to convert a small
file. These do not.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray


def numbers(values: NDArray[Any], absent: NDArray[np.bool_] | None = None) -> pa.Array:
    """Numbers or booleans, whose memory is shared where it can be.

    Parameters
    ----------
    values
        One-dimensional.
    absent
        Which of them are null; None: none of them.
    """
    (n,) = values.shape
    native = np.ascontiguousarray(values, values.dtype.newbyteorder("="))
    held = _bits(native) if native.dtype == bool else pa.py_buffer(native)
    valid = None if absent is None or not absent.any() else _bits(~absent)
    return pa.Array.from_buffers(pa.from_numpy_dtype(native.dtype), n, [valid, held])


def to_numpy(array: pa.Array) -> NDArray[Any]:
    """The numbers of an array without nulls, whose memory is shared."""
    dtype = np.dtype(array.type.to_pandas_dtype())
    if not len(array):
        return np.empty(0, dtype)
    return np.frombuffer(array.buffers()[1], dtype, len(array), array.offset * dtype.itemsize)


def text(values: Sequence[str | bytes]) -> pa.Array:
    """Strings, or bytes in UTF-8, as ``large_string``; UnicodeDecodeError for other bytes."""
    encoded = [value if isinstance(value, bytes) else value.encode() for value in values]
    offsets = np.zeros(len(encoded) + 1, np.int64)
    np.cumsum(np.fromiter(map(len, encoded), np.int64, len(encoded)), out=offsets[1:])
    joined = b"".join(encoded)
    held = [None, pa.py_buffer(offsets), pa.py_buffer(joined)]
    if not joined.isascii():
        # Looks at each string on its own: two may make a character together.
        for value in encoded:
            value.decode()
    return pa.Array.from_buffers(pa.large_string(), len(encoded), held)


def is_text(type_: pa.DataType) -> bool:
    """Whether a type is one of those that Arrow has for text."""
    return str(type_) in ("string", "large_string", "string_view")


def same(one: pa.ChunkedArray, other: pa.ChunkedArray) -> bool:
    """Whether two columns have one type and the same values; NaN is the same as NaN.

    Categories count by their values, whatever their codes.
    """
    return bool(one.type == other.type and _comparable(one).equals(_comparable(other)))


def shared_columns(tables: Iterable[pa.Table]) -> pa.Table:
    """The columns that tables of as many rows have in common: of one name, type and content."""
    found: pa.Table | None = None
    for table in tables:
        if found is None:
            found = table
            continue
        names = [
            name
            for name in found.schema.names
            if name in table.schema.names and same(found[name], table[name])
        ]
        metadata = found.schema.metadata if found.schema.metadata == table.schema.metadata else None
        found = found.select(names).replace_schema_metadata(metadata)
    if found is None:
        raise ValueError("there are no tables")
    return found


def _comparable(column: pa.ChunkedArray) -> pa.ChunkedArray:
    """The same values in a type whose equal values compare as equal."""
    if pa.types.is_dictionary(column.type):
        chunks = [chunk.dictionary_decode() for chunk in column.chunks]
        column = pa.chunked_array(chunks, column.type.value_type)
    if pa.types.is_floating(column.type):
        bits = pa.from_numpy_dtype(f"u{column.type.bit_width // 8}")
        column = pa.chunked_array([chunk.view(bits) for chunk in column.chunks], bits)
    return column


def without_missing(values: pa.Array) -> pa.Array:
    """What is neither null nor NaN of some values."""
    return pc.filter(values, pc.invert(is_missing(values)))


def coder(categories: pa.Array, *, ordered: bool) -> Callable[[pa.Array], pa.DictionaryArray]:
    """What makes codes, nulls among them, a categorical column as pandas has it.

    Its categories are values, each once, and no halves: codes of a category that is null or NaN
    become nulls, those of one that repeats become those of its first.
    """
    if pa.types.is_floating(categories.type):
        # Arrow tells zeros by their signs.
        categories = _wide(categories)
        zeros = np.zeros(len(categories), categories.type.to_pandas_dtype())
        categories = pc.add(categories, numbers(zeros))
    values = pc.unique(without_missing(categories))
    if len(values) == len(categories):
        return lambda codes: pa.DictionaryArray.from_arrays(codes, categories, ordered=ordered)
    places = places_in(categories, values)

    def coded(codes: pa.Array) -> pa.DictionaryArray:
        codes = places.take(codes).cast(codes.type)
        return pa.DictionaryArray.from_arrays(codes, values, ordered=ordered)

    return coded


def category_type(type_: pa.DataType) -> pa.DataType:
    """The type of categories that :func:`coder` makes of values of a type."""
    return pa.float32() if pa.types.is_float16(type_) else type_


def places_in(values: pa.Array, among: pa.Array) -> pa.Array:
    """Of each value its place among others, null where it is not one of them."""
    return pc.index_in(_wide(values), _wide(among))


def _wide(values: pa.Array) -> pa.Array:
    """The same values of a type that Arrow compares."""
    return values.cast(pa.float32()) if pa.types.is_float16(values.type) else values


def is_missing(values: pa.Array) -> pa.Array:
    """Which values are null or NaN."""
    if not pa.types.is_floating(values.type):
        return values.is_null()
    return _wide(values).is_null(nan_is_null=True)


def _bits(values: NDArray[np.bool_]) -> pa.Buffer:
    return pa.py_buffer(np.packbits(values, bitorder="little"))
