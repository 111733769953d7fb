"""Processes of the soak test; see `benchmarks.common.child`."""

from __future__ import annotations

import ctypes
import gc
import os
import statistics
from collections.abc import Sequence
from typing import Any, NamedTuple

import scdl
from benchmarks.common.child import anonymous_bytes, serve

#: Epochs that are not counted: until caches are full. After them the memory that the allocator
#: keeps still varies by two megabytes, over ten epochs or so.
_WARM = 10


class Usage(NamedTuple):
    """Resources that a process uses."""

    descriptors: int
    threads: int
    #: Bytes of anonymous memory.
    anonymous: int

    @classmethod
    def now(cls) -> Usage:
        """Those of this process, without free memory that the allocator keeps."""
        gc.collect()
        ctypes.CDLL(None).malloc_trim(0)
        return cls(
            len(os.listdir("/proc/self/fd")),
            len(os.listdir("/proc/self/task")),
            anonymous_bytes() or 0,
        )


def growth(samples: Sequence[Usage]) -> Usage:
    """By how much the last third of the samples exceeds the first, in the median."""
    n = max(1, len(samples) // 3)
    ends = zip(zip(*samples[:n], strict=True), zip(*samples[-n:], strict=True), strict=True)
    return Usage(*(int(statistics.median(last) - statistics.median(first)) for first, last in ends))


def read(archive: str, times: int) -> dict[str, Any]:
    """Open an archive for each epoch, and read all of it."""
    samples, warm = [], min(_WARM, times)
    for _ in range(warm + times):
        cells = scdl.open(archive)
        loader = scdl.SingleCellLoader(cells, min(256, len(cells)), obs=["type"], obsm=["X_pca"])
        read_cells = sum(map(len, loader))
        assert read_cells == len(cells), f"{read_cells} of {len(cells)} cells"
        del loader, cells
        samples.append(Usage.now())
    return {"samples": samples[warm:]}


def abandon(archive: str, times: int) -> dict[str, Any]:
    """Start epochs, and leave each after its first batch."""
    cells = scdl.open(archive)
    samples, warm = [], min(100, times)
    for i in range(warm + times):
        for _ in scdl.SingleCellLoader(cells, 32, prefetch=2):
            break
        if i >= warm and i % max(1, times // 50) == 0:
            samples.append(Usage.now())
    return {"samples": samples}


if __name__ == "__main__":
    serve(read, abandon)
