"""What every backend checks of what it is asked to read or write."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from storage_backends.base import DTYPES, ArraySpec
from storage_backends.errors import ArrayNotFoundError, OutputError, RangeError


def check_ranges(
    where: str,
    spec: ArraySpec,
    starts: NDArray[np.int64],
    stops: NDArray[np.int64],
    out: NDArray[Any],
) -> None:
    """Check the arguments of ``read_ranges``; `where` opens the message of an error."""
    if starts.shape != stops.shape or starts.ndim != 1:
        raise RangeError(f"{where}: starts {starts.shape} and stops {stops.shape} differ in shape")
    if starts.dtype != np.int64 or stops.dtype != np.int64:
        raise RangeError(f"{where}: ranges must be int64, not {starts.dtype} and {stops.dtype}")
    # Compiled code is loaded with the first batch, not with the first open.
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
    """Values as an array may store them, C-contiguous; `where` opens the message of an error."""
    if values.ndim == 0 or values.dtype.newbyteorder("=") not in DTYPES:
        raise OutputError(
            f"{where}: cannot store {values.dtype} of {values.ndim} dimensions; expected an array "
            f"of {', '.join(map(str, DTYPES))}"
        )
    return np.ascontiguousarray(values, dtype=values.dtype.newbyteorder("<"))


def check_rows(
    where: str,
    n_rows: int,
    start: int,
    stop: int | None,
    *,
    names: Sequence[str] = (),
    columns: Sequence[str] | None = None,
) -> int:
    """Check the arguments of ``read_table``; where the rows end.

    Parameters
    ----------
    where
        Opens the message of an error.
    n_rows, names
        Rows and columns of the table.
    start, stop, columns
        Those that are asked for.
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
