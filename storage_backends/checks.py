"""Checks of the arguments of reads and writes, shared by all backends."""

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
    """Check the arguments of ``read_ranges``; error messages begin with `where`."""
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
    if not _can_hold(out.dtype, spec.dtype) or out.shape != expected:
        raise OutputError(
            f"{where}: out must be {spec.dtype} of shape {expected}, "
            f"not {out.dtype} of shape {out.shape}"
        )
    if not (out.flags.c_contiguous and out.flags.writeable):
        raise OutputError(f"{where}: out must be C-contiguous and writable")


def _can_hold(dtype: np.dtype[Any], stored: np.dtype[Any]) -> bool:
    if dtype == stored:
        return True
    return stored.kind in "iu" and dtype.kind in "iu" and np.can_cast(stored, dtype, "safe")


def little_endian(where: str, values: NDArray[Any]) -> NDArray[Any]:
    """Values as C-contiguous little-endian array; error messages begin with `where`."""
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
    """Check the arguments of ``read_table`` and return the end of the rows.

    Parameters
    ----------
    where
        Beginning of error messages.
    n_rows, names
        Number of rows, and columns of the table.
    start, stop, columns
        Requested rows and columns.
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
