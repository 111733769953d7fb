"""Rates of memory and disk, to compare loaders with."""

from __future__ import annotations

import os
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from pathlib import Path

import numpy as np

from benchmarks.common.page_cache import files

_SOURCE_BYTES = 1 << 29
_READ_BYTES = 1 << 22
_READ_THREADS = 16


def copy_rate(stretch: int, seconds: float) -> float:
    """Bytes per second of copying `stretch` bytes at a time, from memory outside the cache."""
    source = np.ones(max(_SOURCE_BYTES, stretch), np.uint8)
    target = np.empty(stretch, np.uint8)
    np.copyto(target, source[:stretch])
    starts = range(0, len(source) - stretch + 1, stretch)
    copied, start = 0, time.perf_counter()
    while (elapsed := time.perf_counter() - start) < seconds or not copied:
        for first in starts:
            np.copyto(target, source[first : first + stretch])
        copied += len(starts) * stretch
    return copied / elapsed


def disk_seconds(path: Path) -> float:
    """Seconds to read all files of an archive, in large parts by many threads."""
    local = threading.local()

    def read(part: tuple[int, int]) -> None:
        if not hasattr(local, "buffer"):
            local.buffer = bytearray(_READ_BYTES)
        os.preadv(part[0], [local.buffer], part[1])

    with ExitStack() as stack:
        opened = [stack.enter_context(file.open("rb", buffering=0)) for file in files(path)]
        parts = [
            (file.fileno(), start)
            for file in opened
            for start in range(0, os.fstat(file.fileno()).st_size, _READ_BYTES)
        ]
        pool = stack.enter_context(ThreadPoolExecutor(_READ_THREADS))
        begin = time.perf_counter()
        list(pool.map(read, parts))
        return time.perf_counter() - begin
