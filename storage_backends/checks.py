"""Checks of the arguments of reads and writes, shared by all backends."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from storage_backends.base import DTYPES, ArraySpec, is_column_type
from storage_backends.errors import ArrayNotFoundError, OutputError, RangeError, one_line

if TYPE_CHECKING:
    import pyarrow as pa


#: Rows of the batches in which a whole table is written.
_BATCH_ROWS = 1 << 16


def check_ranges(
    where: str,
    spec: ArraySpec,
    starts: NDArray[np.int64],
    stops: NDArray[np.int64],
    out: NDArray[Any],
) -> None:
    """Check the arguments of ``read_ranges``; error messages begin with `where`.

    Examples
    --------
    >>> from storage_backends.checks import check_ranges
    >>> starts, stops = np.array([0, 4]), np.array([2, 9])
    >>> out = np.empty(7, np.float32)
    >>> check_ranges("cells.scdl: data", data.store.spec("data"), starts, stops, out)
    """
    if starts.shape != stops.shape or starts.ndim != 1:
        raise RangeError(f"{where}: starts {starts.shape} and stops {stops.shape} differ in shape")
    if starts.dtype != np.int64 or stops.dtype != np.int64:
        raise RangeError(f"{where}: ranges must be int64, not {starts.dtype} and {stops.dtype}")
    # Load compiled code at the first read, not when an archive is opened.
    from storage_backends.compute.ranges import total_length

    total = total_length(starts, stops, spec.length)
    if total < 0:
        bad = -1 - total
        raise RangeError(
            f"{where}: range [{starts[bad]}, {stops[bad]}) is not within [0, {spec.length}]"
        )
    expected = (total, *spec.item_shape)
    stored = spec.dtype
    fits = out.dtype == stored or (
        stored.kind in "iu" and out.dtype.kind in "iu" and np.can_cast(stored, out.dtype, "safe")
    )
    if not fits or out.shape != expected:
        raise OutputError(
            f"{where}: out must be {stored} of shape {expected}, "
            f"not {out.dtype} of shape {out.shape}"
        )
    if not (out.flags.c_contiguous and out.flags.writeable):
        raise OutputError(f"{where}: out must be C-contiguous and writable")


def little_endian(where: str, values: NDArray[Any]) -> NDArray[Any]:
    """Values as C-contiguous little-endian array; error messages begin with `where`."""
    if values.ndim == 0 or values.dtype.newbyteorder("=") not in DTYPES:
        raise OutputError(
            f"{where}: cannot store {values.dtype} of {values.ndim} dimensions; expected an array "
            f"of {', '.join(map(str, DTYPES))}"
        )
    return np.ascontiguousarray(values, dtype=values.dtype.newbyteorder("<"))


def check_columns(where: str, schema: pa.Schema) -> None:
    """Raise OutputError for unsupported columns; error messages begin with `where`.

    Examples
    --------
    >>> import pyarrow as pa
    >>> from storage_backends.checks import check_columns
    >>> check_columns("cells.scdl: obs", pa.schema({"donor": pa.string()}))
    """
    repeated = [name for name, n in Counter(schema.names).items() if n > 1]
    if repeated:
        raise OutputError(f"{where}: duplicate column names: {', '.join(map(repr, repeated))}")
    for field in schema:
        if not is_column_type(field.type):
            raise OutputError(
                f"{where}: cannot store column {field.name!r} of {field.type}; expected numbers, "
                "booleans, text or categories of these: cast the column, or leave it out"
            )


def alike_batches(where: str, table: pa.Table | pa.RecordBatchReader) -> Iterator[pa.RecordBatch]:
    """The batches of a table, at least one, with the same categories in each column.

    Raises
    ------
    OutputError
        Batches of a stream have different categories, or the chunks of a table cannot be joined;
        the message begins with `where`.
    """
    import pyarrow as pa

    if isinstance(table, pa.Table):
        try:
            table = table.unify_dictionaries()
        except pa.ArrowException as error:
            raise OutputError(
                f"{where}: categories of its chunks cannot be joined ({one_line(error)}); pass "
                "each categorical column as one chunk, or with codes of a wider type"
            ) from error
        batches = iter(table.to_batches(_BATCH_ROWS))
        # A table without rows has no batch, but its columns may have categories.
        columns = [c.chunk(0) if c.num_chunks else pa.nulls(0, c.type) for c in table.columns]
    else:
        batches, columns = iter(table), [pa.nulls(0, field.type) for field in table.schema]
    empty = [column.slice(0, 0) for column in columns]
    first = next(batches, pa.RecordBatch.from_arrays(empty, schema=table.schema))
    categorical = [field.name for field in table.schema if pa.types.is_dictionary(field.type)]
    yield first
    for batch in batches:
        for name in categorical:
            if not batch.column(name).dictionary.equals(first.column(name).dictionary):
                raise OutputError(
                    f"{where}: batches of column {name!r} differ in their categories; give "
                    "every batch all categories"
                )
        yield batch


def check_rows(
    where: str,
    n_rows: int,
    start: int,
    stop: int | None,
    *,
    names: Sequence[str] = (),
    columns: Sequence[str] | None = None,
) -> int:
    """Check the arguments of ``read_table`` and return the end of the rows.

    Parameters
    ----------
    where
        Start of error messages.
    n_rows, names
        Number of rows, and columns of the table.
    start, stop, columns
        Requested rows and columns.

    Examples
    --------
    >>> from storage_backends.checks import check_rows
    >>> check_rows("cells.scdl: obs", 6, 2, None)
    6
    """
    for column in columns or ():
        if column not in names:
            raise ArrayNotFoundError(
                f"{where} has no column {column!r}; it has: {', '.join(names)}"
            )
    stop = n_rows if stop is None else stop
    if not 0 <= start <= stop <= n_rows:
        raise RangeError(f"{where}: rows [{start}, {stop}) are not within [0, {n_rows}]")
    return stop
