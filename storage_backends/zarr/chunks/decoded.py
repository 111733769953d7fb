"""Memory of decoded chunks: those that are kept, and that of chunks being decoded."""

from __future__ import annotations

import threading
from typing import Any

import numpy as np
from numpy.typing import NDArray

from storage_backends.compute.caching import LRUCache

#: Bytes of chunks that a thread decodes at once: few enough for the CPU's cache, and enough that
#: threads seldom contend for the GIL.
GROUP_BYTES = 1 << 20

#: Has the attribute `memory` in threads that decode groups of chunks.
_scratch = threading.local()

#: Bytes of decoded chunks that a process keeps.
CACHE_BYTES = 64 << 20
#: Bytes of a kept number of most arrays.
KEPT_BYTES = 4
#: Decoded chunks that were used last, by array and number. All archives share them, since a
#: collection may have thousands.
CHUNKS = LRUCache[tuple[object, int], NDArray[Any]](CACHE_BYTES, lambda chunk: chunk.nbytes)


def narrowed(chunk: NDArray[Any]) -> NDArray[Any]:
    """A chunk as it is kept: 64-bit numbers take half the memory if they fit 32 bits."""
    if chunk.dtype.kind not in "iu" or chunk.itemsize <= KEPT_BYTES:
        return chunk
    fits = chunk.size and chunk.min() >= 0 and chunk.max() <= np.iinfo(np.uint32).max
    return chunk.astype(np.uint32) if fits else chunk


def scratch(shape: tuple[int, int], dtype: np.dtype[Any]) -> NDArray[Any]:
    """Memory of this thread for a group of chunks; it is used again by the next call."""
    n_bytes = shape[0] * shape[1] * dtype.itemsize
    if n_bytes > GROUP_BYTES:
        return np.empty(shape, dtype)
    if not hasattr(_scratch, "memory"):
        _scratch.memory = np.empty(GROUP_BYTES, np.uint8)
    return np.ndarray(shape, dtype, _scratch.memory)
