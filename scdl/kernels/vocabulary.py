"""Translation of the ids of genes in lists, such as tokens of models, to column ids."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from storage_backends.compute.jit import kernel


@kernel
def translate(
    ids: NDArray[np.int64],
    values: NDArray[Any],
    indptr: NDArray[np.int64],
    places: NDArray[np.int32],
    out_ids: NDArray[np.unsignedinteger[Any]],
    out: NDArray[Any],
) -> int:
    """Copy rows of values, with the columns of their ids; drop values of unknown ids.

    Parameters
    ----------
    ids, values
        Any id, and the value, of each entry.
    indptr
        n + 1 offsets, starting at 0; replaced by those of the entries that are kept.
    places
        Column of each id from 0; -1 for ids that are unknown, as are all other ids.
    out_ids, out
        Outputs with room for all entries; `out` has the dtype of the values.

    Returns
    -------
    int
        Number of entries that are kept.
    """
    kept, start, n = np.uint64(0), 0, np.uint64(len(places))
    for i in range(len(indptr) - 1):
        stop = indptr[i + 1]
        for k in range(start, stop):
            # A negative id becomes a large one.
            number = np.uint64(ids[k])
            place = places[number] if number < n else np.int32(-1)
            # Always written, without a branch; overwritten by the next entry if not kept.
            out_ids[kept] = place
            out[kept] = values[k]
            kept += np.uint64(place >= 0)
        start = stop
        indptr[i + 1] = kept
    return int(kept)
