"""Locating and copying rows of one or many archives by memory address."""

from __future__ import annotations

from typing import Any

import numpy as np
from llvmlite import ir
from numba import types
from numba.core import cgutils
from numpy.typing import NDArray

from scdl.kernels.dense import sum_values
from storage_backends.compute.jit import fetch_ahead, intrinsic, kernel

#: Up to this number of archives, positions are compared with every start instead of searched.
_FEW = 500


@intrinsic
def pointer_to(typingctx: Any, address: Any, like: Any) -> Any:
    """A pointer of an array's dtype to an address."""
    pointer: Any = types.CPointer(like.dtype)  # type: ignore[no-untyped-call]

    def codegen(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        return builder.inttoptr(arguments[0], context.get_value_type(pointer))

    return pointer(types.int64, like), codegen


@intrinsic
def pointer_in(typingctx: Any, numbers: Any, start: Any) -> Any:
    """A pointer to an element of a one-dimensional contiguous array.

    Loops over rows use pointers because reference counting of slices costs as much as ten values.
    """
    pointer: Any = types.CPointer(numbers.dtype)  # type: ignore[no-untyped-call]

    def codegen(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        array = context.make_array(signature.args[0])(context, builder, arguments[0])
        return builder.gep(array.data, [arguments[1]])

    return pointer(numbers, types.int64), codegen


@intrinsic
def _offset_at(typingctx: Any, address: Any, size: Any) -> Any:
    """Load an unsigned offset of 1, 2, 4 or 8 bytes from an address."""

    def codegen(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        address, size = arguments
        loaded = cgutils.alloca_once(builder, size.type)  # type: ignore[no-untyped-call]
        for n_bytes in (1, 2, 4, 8):
            number = ir.IntType(8 * n_bytes)
            with builder.if_then(builder.icmp_signed("==", size, size.type(n_bytes))):
                value = builder.load(builder.inttoptr(address, number.as_pointer()))
                builder.store(value if n_bytes == 8 else builder.zext(value, size.type), loaded)
        return builder.load(loaded)

    return types.int64(types.int64, types.int64), codegen


@kernel
def find_archives(
    at: NDArray[np.int64],
    starts: NDArray[np.int64],
    which: NDArray[np.int64],
    rows: NDArray[np.int64],
) -> None:
    """Find the archives that contain the cells at positions.

    Parameters
    ----------
    at
        Positions in ``[0, starts[-1])``.
    starts
        First position of each archive, and the end of the last.
    which, rows
        Outputs of the length of `at`: archive of each cell, and row within the archive.
    """
    if len(starts) <= _FEW:
        # Vectorised over cells; binary search would mispredict every other branch.
        which[:] = 0
        for start in starts[1:-1]:
            for i in range(len(at)):
                which[i] += at[i] >= start
    else:
        for i in range(len(at)):
            which[i] = np.searchsorted(starts, at[i], side="right") - 1
    for i in range(len(at)):
        rows[i] = at[i] - starts[which[i]]


@kernel
def locate_rows(
    which: NDArray[np.int64],
    rows: NDArray[np.int64],
    arrays: NDArray[np.int64],
    value_bytes: int,
    id_bytes: int,
    out: NDArray[np.int64],
    indptr: NDArray[np.int64],
) -> int:
    """Compute the memory addresses of rows of memory-mapped archives.

    Parameters
    ----------
    which, rows
        Archive of each row, and row within it. The caller must have validated them.
    arrays
        For each archive: addresses of values, column ids and offsets, size of an offset in bytes,
        and number of stored values. An offset size of 0 marks archives that are not memory-mapped;
        the caller must fill in `out` for their rows.
    value_bytes, id_bytes
        Size of a value and of a column id in bytes.
    out
        Output, n x 4. The first three columns are set to the address of the values, the address of
        the ids, and their number.
    indptr
        Output, n + 1: offsets of the concatenated rows.

    Returns
    -------
    int
        The first row whose offsets are out of range for its archive, or -1.
    """
    indptr[0] = 0
    for i in range(len(rows)):
        number = which[i]
        size = arrays[number, 3]
        if size != 0:
            at = arrays[number, 2] + rows[i] * size
            start, stop = _offset_at(at, size), _offset_at(at + size, size)
            if start < 0 or stop < start or stop > arrays[number, 4]:
                return i
            out[i, 0] = arrays[number, 0] + start * value_bytes
            out[i, 1] = arrays[number, 1] + start * id_bytes
            out[i, 2] = stop - start
        indptr[i + 1] = indptr[i] + out[i, 2]
    return -1


@kernel
def copy_rows(
    rows: NDArray[np.int64],
    indptr: NDArray[np.int64],
    like: NDArray[Any],
    out_data: NDArray[Any],
    out_indices: NDArray[Any],
) -> np.uint64:
    """Copy rows into contiguous outputs; return the largest column id, or 0 if there is none.

    Parameters
    ----------
    rows
        n x 4, see :func:`locate_rows`.
    indptr
        Offsets of the rows in the outputs.
    like
        Any array with the dtype of the column ids.
    out_data, out_indices
        Outputs; `out_data` has the dtype of the values, `out_indices` an integer dtype that can
        represent the ids.
    """
    largest = np.uint64(0)
    for i in range(len(rows)):
        following = i + 1 if i + 1 < len(rows) else i
        length = indptr[i + 1] - indptr[i]
        # Prefetch between the loops: a core supports a limited number of outstanding cache lines.
        fetch_ahead(rows[following, 0], rows[following, 2] * out_data.itemsize)
        values, target = pointer_to(rows[i, 0], out_data), pointer_in(out_data, indptr[i])
        for k in range(length):
            target[k] = values[k]
        fetch_ahead(rows[following, 1], rows[following, 2] * like.itemsize)
        ids, target_ids = pointer_to(rows[i, 1], like), pointer_in(out_indices, indptr[i])
        most = like.dtype.type(0)
        for k in range(length):
            number = ids[k]
            most = number if number > most else most
            target_ids[k] = number
        largest = np.uint64(most) if most > largest else largest
    return largest


@kernel
def sum_rows(rows: NDArray[np.int64], like: NDArray[Any], out: NDArray[np.float64]) -> None:
    """Sum the values of rows.

    Parameters
    ----------
    rows
        n x 4, see :func:`locate_rows`.
    like
        Any array with the dtype of the values.
    out
        Output: the sum of each row.
    """
    for i in range(len(rows)):
        following = min(i + 1, len(rows) - 1)
        fetch_ahead(rows[following, 0], rows[following, 2] * like.itemsize)
        out[i] = sum_values(pointer_to(rows[i, 0], like), rows[i, 2])
