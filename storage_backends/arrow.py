"""Arrow arrays of what NumPy and Python hold.

``pyarrow.array`` imports pandas whatever it is given, which takes longer than to convert a small
file. These do not.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray


def numbers(values: NDArray[Any], absent: NDArray[np.bool_] | None = None) -> pa.Array:
    """Numbers or booleans, whose memory is shared where it can be.

    Parameters
    ----------
    values
        One-dimensional.
    absent
        Which of them are null; None: none of them.
    """
    (n,) = values.shape
    native = np.ascontiguousarray(values, values.dtype.newbyteorder("="))
    held = _bits(native) if native.dtype == bool else pa.py_buffer(native)
    valid = None if absent is None or not absent.any() else _bits(~absent)
    return pa.Array.from_buffers(pa.from_numpy_dtype(native.dtype), n, [valid, held])


def text(values: Sequence[str]) -> pa.Array:
    """Strings, as ``large_string``."""
    encoded = [value.encode() for value in values]
    offsets = np.zeros(len(encoded) + 1, np.int64)
    np.cumsum(np.fromiter(map(len, encoded), np.int64, len(encoded)), out=offsets[1:])
    held = [None, pa.py_buffer(offsets), pa.py_buffer(b"".join(encoded))]
    return pa.Array.from_buffers(pa.large_string(), len(encoded), held)


def _bits(values: NDArray[np.bool_]) -> pa.Buffer:
    return pa.py_buffer(np.packbits(values, bitorder="little"))
