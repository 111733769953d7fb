"""Optional capability of a backend: rows as they are encoded, which a GPU decodes.

Experimental: it may change in any release.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple, TypeAlias

import numpy as np
from numpy.typing import NDArray

from storage_backends.contents import Positions

#: Memory of so many bytes, from which a GPU can copy.
Allocate: TypeAlias = Callable[[int], NDArray[np.uint8]]
#: An array that a kernel of ``numba.cuda`` takes.
DeviceArray: TypeAlias = Any


class EncodedRows(NamedTuple):
    """Values and column ids of rows of a sparse matrix, encoded, with checked checksums.

    Attributes
    ----------
    content
        All that `decode` needs of the rows, to be copied to the device.
    mapping
        What `decode` needs of the matrix, uint32; the same object for all rows of a matrix.
    dtype
        Dtype of the values.
    decode
        Enqueues the kernels that decode `content`. Its arguments are arrays on the device: the
        copies of `content` and `mapping`; the outputs of the values, of `dtype`, and of the ids,
        uint32, both in the order of the rows and in each row in the stored order; and one int32,
        which becomes 1 if the rows are damaged.

    Examples
    --------
    >>> _ = scdl.convert("cells.h5ad", "single.zarr", compression="packed")
    >>> store, starts, stops = scdl.open("single.zarr").store, np.array([0]), np.array([2])
    >>> gather = store.encoded_rows_across
    >>> rows = gather([store], "", np.array([0]), starts, stops, lambda n: np.empty(n, np.uint8))
    >>> rows.dtype, len(rows.content) > 0
    (dtype('float32'), True)
    """

    content: NDArray[np.uint8]
    mapping: NDArray[np.uint32]
    dtype: np.dtype[Any]
    decode: Callable[[DeviceArray, DeviceArray, DeviceArray, DeviceArray, DeviceArray], None]


class Encoded:
    """Rows that are decoded elsewhere.

    Examples
    --------
    >>> starts, stops = np.array([0]), np.array([2])
    >>> encoded = data.store.encoded_rows_across
    >>> encoded([data.store], "", np.zeros(1, int), starts, stops, np.empty) is None
    True
    """

    @classmethod
    def encoded_rows_across(
        cls,
        stores: Sequence[Any],
        prefix: str,
        which: Positions,
        starts: Positions,
        stops: Positions,
        allocate: Allocate,
    ) -> EncodedRows | None:
        """Gather the encoded values and column ids of rows of a sparse matrix.

        None if they are not encoded row by row, or are damaged: reading them tells which.

        Parameters
        ----------
        prefix, which, starts, stops
            As for ``read_rows_across``.
        allocate
            Returns the memory of the content, which may be longer than needed.
        """
        return None
