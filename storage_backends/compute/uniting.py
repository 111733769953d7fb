"""Columns of several tables as one: a type that holds the values of all.

Types unite as those of pandas and anndata do, without objects: truth values and numbers become
numbers, categories those of all tables, categories and text text. A column without a value (only
NaN or nulls, as pandas has of columns that were never filled) takes the type of the others. What
has no other type in common becomes text. A missing value stays missing, whatever the type.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from storage_backends.compute.arrow import is_missing, is_text, places_in, without_missing

#: Integers up to which a float64 has every one.
_EXACT = 1 << 53


class Part(NamedTuple):
    """A column of one of the tables.

    Attributes
    ----------
    type
        As it is stored.
    categories
        Of a categorical column.
    pieces
        Gives its values some rows at a time, for what types alone do not tell.
    """

    type: pa.DataType
    categories: pa.Array | None
    pieces: Callable[[], Iterable[pa.Array]]


class UnitedColumn:
    """One column over several tables.

    Parameters
    ----------
    parts
        The column of each table that has it, at least one.

    Attributes
    ----------
    type
        Of all values.
    change
        What is not as in each table, such as ``bool and int64 become int64``; empty where values,
        categories and their order are.
    """

    def __init__(self, parts: Sequence[Part]) -> None:
        self.type: pa.DataType
        self.change = ""
        self._categories: pa.Array | None = None
        if len({_group(part) for part in parts}) > 1:
            filled = [part for part in parts if not _is_empty(part)]
            # Of columns without a value one is as good as another, but for that of no type.
            parts = filled or [max(parts, key=lambda part: not pa.types.is_null(part.type))]
        if not all(pa.types.is_dictionary(part.type) for part in parts):
            self.type = self._common(parts)
            return
        named = [part for part in parts if not _has_no_categories(part)] or parts[:1]
        values = self._common(named)
        lists = [without_missing(cast(part.categories, values)) for part in named]
        longest = max(lists, key=len)
        # An order is kept where one table has all categories, and the others some in that order.
        ordered = [part.type.ordered for part in named]
        keeps = all(ordered) and all(_is_in_order(some, longest) for some in lists)
        if any(ordered) and not keeps:
            self.change = self.change or "the categories are no longer ordered"
        self._categories = longest if keeps else pc.unique(pa.concat_arrays(lists))
        self.type = pa.dictionary(pa.int32(), values, keeps)

    def convert(self, column: pa.Array) -> pa.Array:
        """Values of one of the tables as the common type.

        Raises
        ------
        pyarrow.ArrowException
            It does not hold one of them.
        """
        if column.null_count == len(column):
            # Also of categories that no value has, and that may be of any type.
            return self.nulls(len(column))
        if self._categories is None:
            return cast(_decoded(column), self.type)
        if not pa.types.is_dictionary(column.type):
            values = cast(column, self._categories.type)
            return self._coded(places_in(values, self._categories))
        places = places_in(cast(column.dictionary, self._categories.type), self._categories)
        return self._coded(places.take(column.indices))

    def nulls(self, n: int) -> pa.Array:
        """What stands for rows of a table that lacks the column."""
        return pa.nulls(n, self.type) if self._categories is None else self._coded(_no_codes(n))

    def _coded(self, codes: pa.Array) -> pa.Array:
        return pa.DictionaryArray.from_arrays(codes, self._categories, ordered=self.type.ordered)

    def _common(self, parts: Sequence[Part]) -> pa.DataType:
        """The type of the united values; changes of the values are recorded."""
        types = list(dict.fromkeys(_value_type(part.type) for part in parts))
        if len(types) == 1:
            return types[0]
        kinds = {_kind(type_) for type_ in types}
        found = _number(parts) if kinds <= {"bool", "int", "float"} else _other(types)
        found = pa.large_string() if found is None else found
        # Integers among floats are what they are everywhere.
        if kinds not in ({_kind(found)}, {"int", "float"}) or _kind(found) not in kinds:
            self.change = f"{' and '.join(map(_name, types))} become {_name(found)}"
        return found


def cast(values: pa.Array, type_: pa.DataType) -> pa.Array:
    """Values as a wider type, or as text as Python writes it; NaN becomes null where it must.

    Raises
    ------
    pyarrow.ArrowException
        The type does not hold one of them.
    """
    if values.type == type_:
        return values
    if pa.types.is_floating(values.type) and not pa.types.is_floating(type_):
        values = pc.if_else(is_missing(values), pa.scalar(None, values.type), values)
    if pa.types.is_boolean(values.type) and _kind(type_) == "text":
        return pc.if_else(values, pa.scalar("True", type_), pa.scalar("False", type_))
    return values.cast(type_)


def _decoded(column: pa.Array) -> pa.Array:
    return column.dictionary_decode() if pa.types.is_dictionary(column.type) else column


def _value_type(type_: pa.DataType) -> pa.DataType:
    return type_.value_type if pa.types.is_dictionary(type_) else type_


def _no_codes(n: int) -> pa.Array:
    return pa.nulls(n, pa.int32())


def _kind(type_: pa.DataType) -> str:
    if is_text(type_):
        return "text"
    if pa.types.is_boolean(type_):
        return "bool"
    if pa.types.is_integer(type_):
        return "int"
    return "float" if pa.types.is_floating(type_) else str(type_)


def _name(type_: pa.DataType) -> str:
    """What people call a type."""
    return "text" if _kind(type_) == "text" else str(type_)


def _group(part: Part) -> tuple[bool, str]:
    """Columns of one group unite whether or not they have a value."""
    return pa.types.is_dictionary(part.type), _kind(_value_type(part.type))


def _is_empty(part: Part) -> bool:
    """Whether a column has no value in any row; reads no more than needed."""
    if pa.types.is_null(part.type) or _has_no_categories(part):
        return True
    return not any(len(without_missing(_decoded(piece))) for piece in part.pieces())


def _has_no_categories(part: Part) -> bool:
    return part.categories is not None and len(part.categories) == 0


def _number(parts: Sequence[Part]) -> pa.DataType | None:
    """The type of numbers as NumPy unites them; None where it would not hold all exactly."""
    types = {_value_type(part.type) for part in parts}
    common = np.result_type(*(type_.to_pandas_dtype() for type_ in types))
    wide = [part for part in parts if str(_value_type(part.type)) in ("int64", "uint64")]
    if common == np.float16:
        # Arrow makes few numbers halves.
        common = np.dtype(np.float32)
    if common.kind != "f" or not wide:
        return pa.from_numpy_dtype(common)
    low, high = _extent(wide)
    if any(map(pa.types.is_floating, types)):
        return pa.from_numpy_dtype(common) if -_EXACT <= low <= high <= _EXACT else None
    # Signed and unsigned: NumPy has no integers of both.
    low = min(low, _extent(parts)[0])
    if high <= np.iinfo(np.int64).max:
        return pa.int64()
    return pa.uint64() if low >= 0 else None


def _extent(parts: Sequence[Part]) -> tuple[int, int]:
    """The smallest and the largest of some integers, and zero."""
    low, high = 0, 0
    for part in parts:
        pieces = part.pieces() if part.categories is None else [part.categories]
        for piece in pieces:
            found: dict[str, Any] = pc.min_max(piece).as_py()
            low, high = min(low, found["min"] or 0), max(high, found["max"] or 0)
    return low, high


def _other(types: Sequence[pa.DataType]) -> pa.DataType | None:
    """The type that holds times, or text of several kinds, without a loss."""
    if len({_kind(type_) == "text" for type_ in types}) > 1:
        return None
    try:
        schemas = [pa.schema([pa.field("x", type_)]) for type_ in types]
        return pa.unify_schemas(schemas, promote_options="permissive").field("x").type
    except pa.ArrowException:
        return None


def _is_in_order(some: pa.Array, of: pa.Array) -> bool:
    """Whether categories are among others, in the order of those."""
    places = places_in(some, of)
    return not places.null_count and bool((np.diff(places.to_numpy()) > 0).all())
