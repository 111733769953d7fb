"""Conversion between Arrow tables and pandas data frames."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from scdl.archive.schema import INDEX, INDEX_NAME, NULLABLE
from storage_backends.anndata_format.names import is_nullable

if TYPE_CHECKING:
    import pandas as pd
    import pyarrow as pa


def frame_of(table: pa.Table) -> pd.DataFrame:
    """Convert a table to a data frame with its index; columns with nulls keep their types."""
    import pandas as pd
    import pyarrow as pa

    metadata = table.schema.metadata or {}
    for i, field in enumerate(table.schema):
        if pa.types.is_dictionary(field.type):
            values = with_values(table.column(i).combine_chunks())
            table = table.set_column(i, field.with_type(values.type), values)
    # Arrow's threads may release our memory only at interpreter exit, which crashes the process.
    frame: pd.DataFrame = table.replace_schema_metadata(None).to_pandas(use_threads=False)
    for field in table.schema:
        column = table[field.name]
        if field.name == INDEX or not (is_nullable(field) or column.null_count):
            continue
        # pandas would convert integers with nulls to floats.
        absent = column.is_null().to_numpy()
        if pa.types.is_integer(field.type):
            integers = pd.arrays.IntegerArray(column.fill_null(0).to_numpy(), absent)
            frame[field.name] = integers
        elif pa.types.is_boolean(field.type):
            booleans = pd.arrays.BooleanArray(column.fill_null(False).to_numpy(), absent)
            frame[field.name] = booleans
        elif str(field.type) in _TEXT and (is_nullable(field) or frame[field.name].dtype == object):
            # The default string dtype of pandas 3 represents nulls already.
            frame[field.name] = frame[field.name].astype("string")
    if INDEX in frame:
        if frame[INDEX].isna().any() and str(table.schema.field(INDEX).type) in _TEXT:
            # anndata can write this dtype, but not objects with None among them.
            frame[INDEX] = frame[INDEX].astype("string")
        frame = frame.set_index(INDEX)
        frame.index.name = metadata[INDEX_NAME].decode() if INDEX_NAME in metadata else None
    return frame


def with_values(column: pa.Array) -> pa.Array:
    """Make the categories of a column unique and non-null, as pandas requires."""
    import pyarrow as pa

    if not pa.types.is_dictionary(column.type):
        return column
    from storage_backends.compute import arrow

    return arrow.coder(column.dictionary, ordered=column.type.ordered)(column.indices)


def table_of(frame: pd.DataFrame) -> pa.Table:
    """Convert a data frame to a table; the inverse of :func:`frame_of`."""
    import pandas as pd
    import pyarrow as pa

    index = frame.index
    # Missing names stay null instead of becoming the text "nan".
    absent = np.asarray(index.isna())
    names = pa.array(index.astype(str).to_numpy(object), pa.large_string(), mask=absent)
    metadata = {} if frame.index.name is None else {INDEX_NAME: str(frame.index.name)}
    table = pa.Table.from_pandas(frame, preserve_index=False)
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
