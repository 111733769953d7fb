"""What a machine can do, to compare loaders with: copying, plain reading, memory."""

from __future__ import annotations

import ctypes
import gc
import mmap
import os
import threading
import time
from collections.abc import Iterator
from contextlib import ExitStack, suppress
from typing import Self

import numpy as np

from scdl.kernels import memory as recycled
from storage_backends.compute.c_library import c_function
from storage_backends.compute.threads import pool_of

#: Bytes that are copied or read at once, and threads that read.
_COPY_BYTES, _READ_BYTES, _READ_THREADS = 1 << 26, 1 << 22, 4
#: Seconds of each measurement.
_SECONDS = 0.2
#: Seconds between two looks at the memory.
_PAUSE = 0.02


def copy_rate() -> float:
    """Bytes per second that one thread copies in memory."""
    source = np.ones(_COPY_BYTES, np.uint8)
    target = np.zeros_like(source)
    n, began = 0, time.perf_counter()
    while (elapsed := time.perf_counter() - began) < _SECONDS or not n:
        np.copyto(target, source)
        n += 1
    return n * _COPY_BYTES / elapsed


def plain_rate(path: str) -> float | None:
    """Bytes per second of large reads of all files at a path, in several threads.

    They go past the page cache, which neither serves them nor changes. None if the system or the
    file system cannot do so, or there are less than a few megabytes.
    """
    if not hasattr(os, "O_DIRECT"):
        return None
    local = threading.local()

    def read(part: tuple[int, int]) -> int:
        if time.perf_counter() - began > _SECONDS:
            return 0
        if not hasattr(local, "memory"):
            # Such reads need memory that is aligned to pages.
            local.memory = mmap.mmap(-1, _READ_BYTES)
        return os.preadv(part[0], [local.memory], part[1])

    with ExitStack() as stack, suppress(OSError):
        parts = list(_parts(path, stack))
        if not parts:
            return None
        pool = stack.enter_context(pool_of(_READ_THREADS, "scdl-plain"))
        began = time.perf_counter()
        n_bytes = sum(pool.map(read, parts))
        return n_bytes / (time.perf_counter() - began)
    return None


def _parts(path: str, stack: ExitStack) -> Iterator[tuple[int, int]]:
    """Descriptors of files, opened for direct reading, and offsets of whole parts of them."""
    walk = os.walk(path) if os.path.isdir(path) else [(os.path.dirname(path), [], [path])]
    # As many as a process may open, by far.
    n_files = 0
    for directory, _, names in walk:
        for name in names:
            file = os.path.join(directory, name)
            size = os.path.getsize(file)
            if size < _READ_BYTES or n_files >= 64:
                continue
            n_files += 1
            descriptor = os.open(file, os.O_RDONLY | os.O_DIRECT)
            stack.callback(os.close, descriptor)
            for start in range(0, size - _READ_BYTES + 1, _READ_BYTES):
                yield descriptor, start


def anonymous_bytes() -> int | None:
    """Anonymous memory of this process in bytes, without mapped files; None if unknown."""
    with suppress(OSError), open("/proc/self/status", encoding="ascii") as file:
        for line in file:
            if line.startswith("RssAnon:"):
                return int(line.split()[1]) * 1024
    return None


class Queue:
    """Measures how long the threads of this process wait for a core, from now on."""

    def __init__(self) -> None:
        self._before = _queued()

    def seconds(self) -> float:
        """Time that the threads which live waited, in sum; 0 if unknown."""
        return sum(after - self._before.get(thread, 0.0) for thread, after in _queued().items())


def _queued() -> dict[str, float]:
    """Seconds that each thread has waited for a core, where the system tells (Linux)."""
    found = {}
    with suppress(OSError):
        for thread in os.listdir("/proc/self/task"):
            # A thread may have ended meanwhile.
            with suppress(OSError), open(f"/proc/self/task/{thread}/schedstat") as file:
                found[thread] = int(file.read().split()[1]) / 1e9
    return found


def _release() -> None:
    """Return unused memory to the system, so that using it again counts."""
    gc.collect()
    recycled.release()
    # Only the GNU C library has it.
    if malloc_trim := c_function("malloc_trim", ctypes.c_size_t):
        malloc_trim(0)


class MemoryWatch:
    """Watches the anonymous memory of this process, from a thread, in a ``with`` block."""

    def __init__(self) -> None:
        _release()
        self._before = self._peak = anonymous_bytes()
        self._done = threading.Event()
        self._thread = threading.Thread(target=self._watch, name="scdl-memory", daemon=True)

    def _watch(self) -> None:
        while not self._done.wait(_PAUSE):
            self._peak = max(self._peak or 0, anonymous_bytes() or 0)

    def __enter__(self) -> Self:
        if self._before is not None:
            self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._done.set()
        if self._thread.ident is not None:
            self._thread.join()

    @property
    def more(self) -> int | None:
        """Bytes of the peak over the beginning; None if unknown."""
        if self._before is None or self._peak is None:
            return None
        return self._peak - self._before
