"""Copying rows that lie anywhere in memory into one batch, also into another gene space.

Rows of several archives come from several mappings. Kernels take them by address, so that one call
serves all archives of a batch and rows are written in the order of the batch: what a gene space
leaves out is then closed up on the way, without a second pass.
"""

from __future__ import annotations

import ctypes
from typing import Any

import numpy as np
from numba import types
from numba.np.numpy_support import carray
from numpy.typing import NDArray

from storage_backends.jit import intrinsic, kernel

#: Returned where a column id is not below the number of genes of its block.
OUT_OF_RANGE = -1


@intrinsic
def _pointer(typingctx: Any, address: Any, like: Any) -> Any:
    """A pointer to numbers of an array's dtype."""
    pointer: Any = types.CPointer(like.dtype)  # type: ignore[no-untyped-call]

    def codegen(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        return builder.inttoptr(arguments[0], context.get_value_type(pointer))

    return pointer(types.int64, like), codegen


@kernel
def copy_rows(
    addresses: NDArray[np.int64], lengths: NDArray[np.int64], like: NDArray[Any], out: NDArray[Any]
) -> None:
    """Copy rows one after the other into `out`.

    Parameters
    ----------
    addresses, lengths
        Where the numbers of each row are, and how many; the caller has checked them.
    like
        Any array of the dtype that they have.
    out
        As long as all of them, of that dtype or of integers that hold it.
    """
    position = 0
    for i in range(len(addresses)):
        piece = carray(_pointer(addresses[i], like), lengths[i])
        target = out[position : position + lengths[i]]
        for k in range(len(target)):
            target[k] = piece[k]
        position += lengths[i]


def copy_rows_numpy(
    addresses: NDArray[np.int64], lengths: NDArray[np.int64], like: NDArray[Any], out: NDArray[Any]
) -> None:
    """The same as :func:`copy_rows` in NumPy."""
    pieces = [_at(*row, like) for row in zip(addresses.tolist(), lengths.tolist(), strict=True)]
    out[:] = np.concatenate([like[:0], *pieces])


@kernel
def map_rows(
    rows: NDArray[np.int64],
    lookup: NDArray[np.int32],
    bounds: NDArray[np.int64],
    like: NDArray[Any],
    out_data: NDArray[Any],
    out_indices: NDArray[Any],
    indptr: NDArray[np.int64],
) -> int:
    """Copy rows one after the other into another gene space, in the order that they have.

    Parameters
    ----------
    rows
        n x 4: address of the values of each row, address of its column ids, how many there are, and
        its table in `lookup`.
    lookup
        Tables one after the other: of each gene its place in the gene space, -1 where it has none.
    bounds
        Where each table begins, and the end of the last.
    like
        Any array of the dtype that the column ids have.
    out_data, out_indices
        As long as all rows; `out_data` has the dtype of the values. What is left out leaves room
        at their ends.
    indptr
        Output of n + 1 offsets.

    Returns
    -------
    int
        Values kept, or :data:`OUT_OF_RANGE`.
    """
    place = 0
    indptr[0] = 0
    for i in range(len(rows)):
        length = rows[i, 2]
        values = carray(_pointer(rows[i, 0], out_data), length)
        ids = carray(_pointer(rows[i, 1], like), length)
        table = lookup[bounds[rows[i, 3]] : bounds[rows[i, 3] + 1]]
        width = np.uint64(len(table))
        target, target_ids = out_data[place : place + length], out_indices[place : place + length]
        kept = np.uint64(0)
        for k in range(length):
            gene = np.uint64(ids[k])
            if gene >= width:
                return OUT_OF_RANGE
            new = table[gene]
            # Written in any case, and over again by the next one if it is not kept.
            target[kept] = values[k]
            target_ids[kept] = new
            kept += np.uint64(new >= 0)
        place += int(kept)
        indptr[i + 1] = place
    return place


def map_rows_numpy(
    rows: NDArray[np.int64],
    lookup: NDArray[np.int32],
    bounds: NDArray[np.int64],
    like: NDArray[Any],
    out_data: NDArray[Any],
    out_indices: NDArray[Any],
    indptr: NDArray[np.int64],
) -> int:
    """The same as :func:`map_rows` in NumPy."""
    place = 0
    indptr[0] = 0
    for i, (data, indices, length, table) in enumerate(rows.tolist()):
        ids = _at(indices, length, like).astype(np.int64)
        genes = lookup[bounds[table] : bounds[table + 1]]
        if len(ids) and not 0 <= ids.min() <= ids.max() < len(genes):
            return OUT_OF_RANGE
        new = genes[ids]
        stop = place + int((new >= 0).sum())
        out_data[place:stop] = _at(data, length, out_data)[new >= 0]
        out_indices[place:stop] = new[new >= 0]
        indptr[i + 1] = place = stop
    return place


def _at(address: int, length: int, like: NDArray[Any]) -> NDArray[Any]:
    """Numbers at an address, as a copy."""
    return np.frombuffer(ctypes.string_at(address, length * like.itemsize), like.dtype)
