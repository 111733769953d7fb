"""Conversion between Arrow tables and pandas data frames."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from scdl.archive.schema import INDEX, INDEX_NAME, NULLABLE
from storage_backends.anndata_format.names import is_nullable

if TYPE_CHECKING:
    import pandas as pd
    import pyarrow as pa


def frame_of(table: pa.Table, *, arrow_strings: bool = False) -> pd.DataFrame:
    """Convert a table to a data frame with its index; columns with nulls keep their types.

    Parameters
    ----------
    arrow_strings
        Whether text is kept in the memory of Arrow, as the dtype ``str`` of pandas 3 is.
    """
    import pandas as pd

    metadata, names = table.schema.metadata or {}, table.schema.names
    n_rows = table.num_rows
    columns: dict[str, Any] = {}
    # Each column is freed when it is converted. Names become the most memory, and come last.
    for name in sorted(names, key=lambda name: name == INDEX):
        field, column = table.schema.field(name), table[name]
        table = table.drop_columns([name])
        columns[name] = _pandas_column(field, column, arrow_strings)
        del column
    index = columns.pop(INDEX, None)
    index = pd.RangeIndex(n_rows) if index is None else pd.Index(index, dtype=index.dtype)
    frame = pd.DataFrame(
        {name: columns[name] for name in names if name != INDEX}, index=index, copy=False
    )
    if INDEX in names:
        frame.index.name = metadata[INDEX_NAME].decode() if INDEX_NAME in metadata else None
    return frame


def _pandas_column(field: pa.Field, column: pa.ChunkedArray, arrow_strings: bool) -> Any:
    """A column as an array of pandas or NumPy."""
    import pandas as pd
    import pyarrow as pa

    marked = is_nullable(field) and field.name != INDEX
    if pa.types.is_dictionary(field.type):
        return with_values(column.combine_chunks()).to_pandas(use_threads=False).array
    if str(field.type) in _TEXT:
        return _pandas_text(field, column, marked, arrow_strings)
    if (marked or column.null_count) and field.name != INDEX:
        # pandas would convert integers with nulls to floats.
        absent = column.is_null().to_numpy()
        if pa.types.is_integer(field.type):
            return pd.arrays.IntegerArray(column.fill_null(0).to_numpy(), absent)
        if pa.types.is_boolean(field.type):
            return pd.arrays.BooleanArray(column.fill_null(False).to_numpy(), absent)
    values = column.to_pandas(use_threads=False).array
    if isinstance(values, pd.arrays.NumpyExtensionArray):
        numbers = values.to_numpy()
        return numbers if numbers.flags.writeable else numbers.copy()
    return values


def _pandas_text(
    field: pa.Field, column: pa.ChunkedArray, marked: bool, arrow_strings: bool
) -> Any:
    import pandas as pd

    if arrow_strings:
        # The stubs of pandas lack this method.
        dtype: Any = pd.StringDtype("pyarrow", na_value=np.nan)
        return dtype.__from_arrow__(column)
    # Names are distinct: looking for equal ones takes longer than making their objects.
    values = column.to_pandas(use_threads=False, deduplicate_objects=field.name != INDEX)
    if marked or (column.null_count and values.dtype == object):
        # The default string dtype of pandas 3 represents nulls already. anndata can write this
        # dtype, but not objects with None among them.
        values = values.astype("string")
    return values.array if values.dtype != object else values.to_numpy()


def with_values(column: pa.Array) -> pa.Array:
    """Make the categories of a column unique and non-null, as pandas requires."""
    import pyarrow as pa

    if not pa.types.is_dictionary(column.type):
        return column
    from storage_backends.compute import arrow

    return arrow.Coder(column.dictionary).array(column.indices, ordered=column.type.ordered)


def table_of(frame: pd.DataFrame) -> pa.Table:
    """Convert a data frame to a table; the inverse of :func:`frame_of`."""
    import pandas as pd
    import pyarrow as pa

    index = frame.index
    # Missing names stay null instead of becoming the text "nan".
    absent = np.asarray(index.isna())
    names = pa.array(index.astype(str).to_numpy(object), pa.large_string(), mask=absent)
    metadata = {} if frame.index.name is None else {INDEX_NAME: str(frame.index.name)}
    # Table.from_pandas describes columns in JSON, which fails for some that are read lazily.
    arrays = {name: _arrow_column(frame[name]) for name in frame.columns}
    table = pa.table(arrays)
    nullable = (pd.arrays.IntegerArray, pd.arrays.BooleanArray, pd.arrays.StringArray)
    # The default string dtype of pandas 3 uses NaN and is not a nullable extension type.
    is_marked = {
        name: isinstance(column.array, nullable)
        and getattr(column.dtype, "na_value", pd.NA) is pd.NA
        for name, column in frame.items()
    }
    fields = [
        field.with_metadata(NULLABLE if is_marked[field.name] else None) for field in table.schema
    ]
    # Adding the index to the table would fail without other columns: it would have no rows.
    columns = [names, *(table[field.name].cast(field.type) for field in fields)]
    schema = pa.schema([pa.field(INDEX, names.type), *fields], metadata)
    return pa.Table.from_arrays(columns, schema=schema)


def _arrow_column(column: pd.Series[Any]) -> pa.Array:
    import pyarrow as pa

    array = pa.array(column, from_pandas=True)
    if pa.types.is_null(array.type) and not len(array):
        # AnnData writes an empty column of objects as text.
        return pa.array([], pa.string())
    if not (pa.types.is_dictionary(array.type) and pa.types.is_null(array.type.value_type)):
        return array
    # A list of no categories has no type.
    categories, ordered = pa.array([], pa.string()), array.type.ordered
    return pa.DictionaryArray.from_arrays(array.indices, categories, ordered=ordered)


def dtype_with_nulls(array: pa.Array) -> Any:
    """NumPy dtype for the values of a column with nulls; None: no conversion is needed."""
    import pyarrow as pa

    numbers = array.dictionary if pa.types.is_dictionary(array.type) else array
    if array.null_count and pa.types.is_boolean(numbers.type):
        return object
    if array.null_count and pa.types.is_integer(numbers.type):
        return np.float64 if are_floats(numbers) else object
    return None


def are_floats(array: pa.Array) -> bool:
    """Whether float64 represents all integers of an array exactly."""
    import pyarrow as pa

    try:
        array.cast(pa.float64())
    except pa.ArrowInvalid:
        return False
    return True


_TEXT = ("string", "large_string")
