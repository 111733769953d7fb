"""Concatenation of columns of several tables, with a common type for all values.

Types are combined as in pandas and anndata, but never to objects: booleans and numbers become
numbers, categories become those of all tables, categories and text become text. A column without
values (only NaN or nulls, such as an unfilled column of pandas) takes the type of the others. Types
without a common type become text. Missing values stay missing.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from storage_backends.compute.arrow import is_missing, is_text, positions_in, without_missing

#: float64 represents all integers up to this one exactly.
_MAX_EXACT = 1 << 53


class ColumnPart(NamedTuple):
    """The column in one of the tables.

    Attributes
    ----------
    type
        Stored type.
    categories
        Categories of a categorical column, else None.
    pieces
        Returns the values piece by piece, for decisions that depend on values.
    """

    type: pa.DataType
    categories: pa.Array | None
    pieces: Callable[[], Iterable[pa.Array]]


class UnitedColumn:
    """A column that is concatenated from several tables.

    Parameters
    ----------
    parts
        The column in each table that has it, at least one.

    Attributes
    ----------
    type
        Common type.
    change
        Description of a change of values, categories or their order, such as ``bool and int64
        become int64``; empty if nothing changes.
    """

    def __init__(self, parts: Sequence[ColumnPart]) -> None:
        self.type: pa.DataType
        self.change = ""
        self._categories: pa.Array | None = None
        if len({_group(part) for part in parts}) > 1:
            filled = [part for part in parts if not _has_no_values(part)]
            # If no column has values, use any of them, but prefer one with a type.
            parts = filled or [max(parts, key=lambda part: not pa.types.is_null(part.type))]
        if not all(pa.types.is_dictionary(part.type) for part in parts):
            self.type = self._common(parts)
            return
        named = [part for part in parts if not _has_no_categories(part)] or parts[:1]
        values = self._common(named)
        lists = [without_missing(cast(part.categories, values)) for part in named]
        longest = max(lists, key=len)
        # The order is kept if one table has all categories, and all others a part in that order.
        ordered = [part.type.ordered for part in named]
        keeps_order = all(ordered) and all(_is_in_order(some, longest) for some in lists)
        if any(ordered) and not keeps_order:
            self.change = self.change or "the categories are no longer ordered"
        self._categories = longest if keeps_order else pc.unique(pa.concat_arrays(lists))
        self.type = pa.dictionary(pa.int32(), values, keeps_order)

    def convert(self, column: pa.Array) -> pa.Array:
        """Convert values of one of the tables to the common type.

        Raises
        ------
        pyarrow.ArrowException
            The common type cannot represent a value.
        """
        if column.null_count == len(column):
            # Unused categories may have a type that cannot be cast.
            return self.nulls(len(column))
        if self._categories is None:
            return cast(_decode_categories(column), self.type)
        if not pa.types.is_dictionary(column.type):
            values = cast(column, self._categories.type)
            return self._from_codes(positions_in(values, self._categories))
        positions = positions_in(cast(column.dictionary, self._categories.type), self._categories)
        return self._from_codes(positions.take(column.indices))

    def nulls(self, n: int) -> pa.Array:
        """Nulls for the rows of a table that lacks the column."""
        if self._categories is None:
            return pa.nulls(n, self.type)
        return self._from_codes(pa.nulls(n, pa.int32()))

    def _from_codes(self, codes: pa.Array) -> pa.Array:
        return pa.DictionaryArray.from_arrays(codes, self._categories, ordered=self.type.ordered)

    def _common(self, parts: Sequence[ColumnPart]) -> pa.DataType:
        """The common type of the values; sets `change` if values change."""
        types = list(dict.fromkeys(_value_type(part.type) for part in parts))
        if len(types) == 1:
            return types[0]
        kinds = {_type_kind(type_) for type_ in types}
        common = (
            _common_number(parts) if kinds <= {"bool", "int", "float"} else _common_other(types)
        )
        common = pa.large_string() if common is None else common
        # Integers that become floats keep their values.
        if kinds not in ({_type_kind(common)}, {"int", "float"}) or _type_kind(common) not in kinds:
            names = " and ".join(map(_type_name, types))
            self.change = f"{names} become {_type_name(common)}"
        return common


def cast(values: pa.Array, type_: pa.DataType) -> pa.Array:
    """Cast values to a wider type, or to text as Python formats them.

    NaN becomes null unless the type is a floating type.

    Raises
    ------
    pyarrow.ArrowException
        The type cannot represent a value.
    """
    if values.type == type_:
        return values
    if pa.types.is_floating(values.type) and not pa.types.is_floating(type_):
        values = pc.if_else(is_missing(values), pa.scalar(None, values.type), values)
    if pa.types.is_boolean(values.type) and _type_kind(type_) == "text":
        return pc.if_else(values, pa.scalar("True", type_), pa.scalar("False", type_))
    return values.cast(type_)


def _decode_categories(column: pa.Array) -> pa.Array:
    return column.dictionary_decode() if pa.types.is_dictionary(column.type) else column


def _value_type(type_: pa.DataType) -> pa.DataType:
    return type_.value_type if pa.types.is_dictionary(type_) else type_


def _type_kind(type_: pa.DataType) -> str:
    if is_text(type_):
        return "text"
    if pa.types.is_boolean(type_):
        return "bool"
    if pa.types.is_integer(type_):
        return "int"
    return "float" if pa.types.is_floating(type_) else str(type_)


def _type_name(type_: pa.DataType) -> str:
    """Name of a type for messages."""
    return "text" if _type_kind(type_) == "text" else str(type_)


def _group(part: ColumnPart) -> tuple[bool, str]:
    """Key of types that have a common type regardless of their values."""
    return pa.types.is_dictionary(part.type), _type_kind(_value_type(part.type))


def _has_no_values(part: ColumnPart) -> bool:
    """Whether all values of a column are missing; stops reading at the first value."""
    if pa.types.is_null(part.type) or _has_no_categories(part):
        return True
    return not any(len(without_missing(_decode_categories(piece))) for piece in part.pieces())


def _has_no_categories(part: ColumnPart) -> bool:
    return part.categories is not None and len(part.categories) == 0


def _common_number(parts: Sequence[ColumnPart]) -> pa.DataType | None:
    """The common type of numbers as in NumPy; None if it cannot represent all values exactly."""
    types = {_value_type(part.type) for part in parts}
    common = np.result_type(*(type_.to_pandas_dtype() for type_ in types))
    wide = [part for part in parts if str(_value_type(part.type)) in ("int64", "uint64")]
    if common == np.float16:
        # Arrow has few conversions to float16.
        common = np.dtype(np.float32)
    if common.kind != "f" or not wide:
        return pa.from_numpy_dtype(common)
    low, high = _extent(wide)
    if any(map(pa.types.is_floating, types)):
        return pa.from_numpy_dtype(common) if -_MAX_EXACT <= low <= high <= _MAX_EXACT else None
    # NumPy has no integer type for both int64 and uint64.
    low = min(low, _extent(parts)[0])
    if high <= np.iinfo(np.int64).max:
        return pa.int64()
    return pa.uint64() if low >= 0 else None


def _extent(parts: Sequence[ColumnPart]) -> tuple[int, int]:
    """Minimum and maximum of integers and zero."""
    low, high = 0, 0
    for part in parts:
        pieces = part.pieces() if part.categories is None else [part.categories]
        for piece in pieces:
            extent: dict[str, Any] = pc.min_max(piece).as_py()
            low, high = min(low, extent["min"] or 0), max(high, extent["max"] or 0)
    return low, high


def _common_other(types: Sequence[pa.DataType]) -> pa.DataType | None:
    """The lossless common type of times, or of string types; None if there is none."""
    if len({_type_kind(type_) == "text" for type_ in types}) > 1:
        return None
    try:
        schemas = [pa.schema([pa.field("x", type_)]) for type_ in types]
        return pa.unify_schemas(schemas, promote_options="permissive").field("x").type
    except pa.ArrowException:
        return None


def _is_in_order(some: pa.Array, of: pa.Array) -> bool:
    """Whether categories are a part of others, in the same order."""
    positions = positions_in(some, of)
    return not positions.null_count and bool((np.diff(positions.to_numpy()) > 0).all())
