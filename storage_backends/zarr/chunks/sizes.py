"""Sizes of arrays as they would be written."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from storage_backends.compute import threads
from storage_backends.zarr.chunks.writing import CHUNKS_PER_RUN
from storage_backends.zarr.codecs.chain import Chain, ends_within
from storage_backends.zarr.codecs.profiles import Profile, fits_narrow


def encoded_bytes(
    name: str, values: NDArray[Any], profile: Profile, ends: NDArray[np.int64]
) -> int:
    """Bytes that an array takes with a profile, whose rows end at `ends`.

    See :class:`~.writing.ArrayBuilder`.
    """
    narrow = fits_narrow(values) if profile.may_narrow(name, values.dtype) else None
    codecs = profile.codecs(name, values.dtype, narrow=narrow is not None)
    chain = Chain.of(codecs, values.dtype)
    assert chain is not None, "a profile has unknown codecs"
    stored, length = values if narrow is None else narrow, profile.chunk_items
    tasks = []
    for start in range(0, len(stored), length * CHUNKS_PER_RUN):
        run = stored[start : start + length * CHUNKS_PER_RUN]
        within = ends_within(ends, start, start + len(run)) if chain.knows_rows else None
        tasks.append(threads.submit(chain.encode_chunks, run, length, within))
    return sum(len(task.result()[0]) for task in tasks)
