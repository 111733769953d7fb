"""Plausibility check of declared array sizes against the size of their files.

Metadata of untrusted files may declare arrays of any size. An array is accepted only if its files
are large enough to contain it in compressed form. `scdl` and the storage backends both use this.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import numpy as np

from storage_backends.errors import ArchiveFormatError

#: Bytes that are accepted regardless of the file size, and additional bytes per byte of the files.
#: Constant data compresses about a thousandfold with any codec, and real data compresses less.
FREE_BYTES = 1 << 25
BYTES_PER_BYTE = 1 << 12
#: Upper limit of the number of items, so that offsets do not overflow.
_MOST_ITEMS = 1 << 62


def check_claim(
    where: str,
    shape: Sequence[int],
    dtype: np.dtype[np.generic] | int,
    stored_bytes: Callable[[], int],
) -> None:
    """Raise ArchiveFormatError if an array declares more bytes than its files can contain.

    Parameters
    ----------
    where
        Start of error messages.
    shape
        Declared shape.
    dtype
        Dtype of the items, or the size of one item in bytes.
    stored_bytes
        Returns the size of the files in bytes; called only for large arrays.
    """
    itemsize = dtype if isinstance(dtype, int) else dtype.itemsize
    claimed = math.prod(shape) * max(itemsize, 1)
    # A zero-length dimension would make the product zero and hide the other sizes.
    largest = math.prod(filter(None, shape))
    if min(shape, default=0) < 0 or largest >= _MOST_ITEMS:
        raise ArchiveFormatError(f"{where} cannot have the shape {_short(shape)}; it is damaged")
    if claimed > FREE_BYTES and claimed > FREE_BYTES + BYTES_PER_BYTE * stored_bytes():
        raise ArchiveFormatError(
            f"{where} has the declared shape {_short(shape)}, which takes {claimed:,} bytes, "
            f"out of proportion to the {stored_bytes():,} bytes of its files; it is damaged, or "
            "almost all of its values are equal"
        )


def _short(shape: Sequence[int]) -> str:
    return f"({', '.join(f'{n:.4g}' if n >= _MOST_ITEMS else str(n) for n in shape)})"[:100]
