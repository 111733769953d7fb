"""What an array may be said to be, given the bytes of the files that hold it.

Files come from others: what they say is believed only as far as they can hold it. Both sides of the
seam use it.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import numpy as np

from storage_backends.errors import ArchiveFormatError

#: What may be claimed whatever the size of the files, and for each of their bytes: what is constant
#: compresses a thousandfold with any codec, and what real arrays hold never more than that.
FREE_BYTES = 1 << 25
BYTES_PER_BYTE = 1 << 12
#: No number of items is larger, so that offsets fit.
_MOST_ITEMS = 1 << 62


def check_claim(
    where: str, shape: Sequence[int], dtype: np.dtype[np.generic] | int, held: Callable[[], int]
) -> None:
    """ArchiveFormatError where an array is said to be larger than its archive can hold.

    Parameters
    ----------
    where
        Opens the message.
    shape
        Its extents.
    dtype
        Type of its items, or bytes of one.
    held
        Bytes of the files, which are counted only for large claims.
    """
    itemsize = dtype if isinstance(dtype, int) else dtype.itemsize
    claimed = math.prod(shape) * max(itemsize, 1)
    # An extent of none hides what others claim.
    largest = math.prod(n for n in shape if n)
    if min(shape, default=0) < 0 or largest >= _MOST_ITEMS:
        raise ArchiveFormatError(f"{where} cannot be of shape {_short(shape)}; it is damaged")
    if claimed > FREE_BYTES and claimed > FREE_BYTES + BYTES_PER_BYTE * held():
        raise ArchiveFormatError(
            f"{where} is said to be of shape {_short(shape)}, which takes {claimed:,} bytes, "
            f"out of proportion to the {held():,} bytes of its files; it is damaged, or almost all "
            "of it is one value"
        )


def _short(shape: Sequence[int]) -> str:
    return f"({', '.join(f'{n:.4g}' if n >= _MOST_ITEMS else str(n) for n in shape)})"[:100]
