"""Conversion of rows to dense arrays, and sums and scaling of rows."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from scdl.kernels.order import OUT_OF_RANGE as OUT_OF_RANGE
from scdl.kernels.order import stable_order
from storage_backends.compute.jit import helper, kernel

#: Returned if the dtype of the output cannot represent a sum.
OVERFLOW = -2


@kernel
def fill_dense(
    data: NDArray[Any],
    indices: NDArray[Any],
    indptr: NDArray[np.int64],
    whole: bool,
    out: NDArray[Any],
) -> int:
    """Convert rows to the dense array `out` of shape (n, n_vars).

    Values of a column that is repeated in a row are summed.

    Parameters
    ----------
    data, indices, indptr
        Rows in compressed sparse row form.
    whole
        Whether `out` has an integer dtype, so that sums may overflow.
    out
        Output, of a dtype that can represent every value.

    Returns
    -------
    int
        0, :data:`OUT_OF_RANGE` for a column id out of range, or :data:`OVERFLOW` if `out` cannot
        represent a sum.
    """
    n_vars = out.shape[1]
    for row in range(len(indptr) - 1):
        target = out[row]
        # Zeroing row by row keeps the row in the cache while its values are written.
        target[:] = 0
        for k in range(indptr[row], indptr[row + 1]):
            column = np.int64(indices[k])
            if column < 0 or column >= n_vars:
                return OUT_OF_RANGE
            # Adding to 0.0 would lose the sign of -0.0.
            before = target[column]
            target[column] = data[k] if before == 0 else before + data[k]
            if whole and before != 0 and (target[column] < before) != (data[k] < 0):
                return OVERFLOW
    return 0


@helper
def sum_values(values: Any, n: int) -> float:
    """Sum the first `n` values of an array or pointer."""
    # Four independent sums hide the latency of floating-point addition, about four cycles.
    a, b, c, d = 0.0, 0.0, 0.0, 0.0
    whole = n - n % 4
    for k in range(0, whole, 4):
        a += values[k]
        b += values[k + 1]
        c += values[k + 2]
        d += values[k + 3]
    for k in range(whole, n):
        a += values[k]
    return (a + b) + (c + d)


@kernel
def sum_rows(data: NDArray[Any], indptr: NDArray[np.int64], out: NDArray[np.float64]) -> None:
    """Sum the values of each row."""
    for row in range(len(indptr) - 1):
        values = data[indptr[row] : indptr[row + 1]]
        out[row] = sum_values(values, len(values))


@kernel
def scale_rows(
    data: NDArray[Any],
    indptr: NDArray[np.int64],
    totals: NDArray[np.float64],
    target: float,
    out: NDArray[Any],
) -> None:
    """Multiply each row by `target` divided by its total; rows with a total of 0 are copied."""
    for row in range(len(indptr) - 1):
        values = data[indptr[row] : indptr[row + 1]]
        scaled = out[indptr[row] : indptr[row + 1]]
        scale = target / totals[row] if totals[row] != 0.0 else 1.0
        for k in range(len(values)):
            scaled[k] = values[k] * scale


@kernel
def take_columns(
    data: NDArray[Any],
    indices: NDArray[Any],
    indptr: NDArray[np.int64],
    n_vars: int,
    columns: NDArray[np.int64],
    out: NDArray[Any],
) -> None:
    """Write the values of given columns of each row; 0 where a row has none.

    Parameters
    ----------
    data, indices, indptr
        Rows in compressed sparse row form, without repeated columns.
    n_vars
        Number of columns.
    columns
        Columns to take, (rows, length); `n_vars` stands for none.
    out
        Output of that shape.
    """
    dense = np.zeros(n_vars + 1, out.dtype)
    for row in range(len(indptr) - 1):
        start, stop = indptr[row], indptr[row + 1]
        for k in range(start, stop):
            dense[indices[k]] = data[k]
        for k in range(columns.shape[1]):
            out[row, k] = dense[columns[row, k]]
        for k in range(start, stop):
            dense[indices[k]] = 0


@kernel
def fill_padded(
    data: NDArray[Any],
    indices: NDArray[Any],
    indptr: NDArray[np.int64],
    keys: NDArray[Any],
    values: NDArray[Any],
    genes: NDArray[np.int64],
) -> None:
    """Write the values and columns of each row to the start of rows of a fixed length.

    Parameters
    ----------
    data, indices, indptr
        Rows in compressed sparse row form.
    keys
        Sort key of each stored value; values of a row are written in ascending order of their keys
        (stable). If empty, the stored order is kept.
    values, genes
        Outputs of shape (rows, length), already filled with the padding. Values that do not fit are
        left out.
    """
    length = values.shape[1]
    for row in range(len(indptr) - 1):
        start, stop = indptr[row], indptr[row + 1]
        n = min(stop - start, length)
        if len(keys):
            order = stable_order(keys[start:stop])
            for k in range(n):
                values[row, k] = data[start + order[k]]
                genes[row, k] = indices[start + order[k]]
        else:
            for k in range(n):
                values[row, k] = data[start + k]
                genes[row, k] = indices[start + k]
