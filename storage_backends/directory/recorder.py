"""Writing the files of an archive, and recording their checksums."""

from __future__ import annotations

import contextlib
import ctypes
import os
import shutil
from typing import Any, Self
from weakref import WeakSet

import numpy as np

from storage_backends.compute.c_library import c_function
from storage_backends.directory.checksums import RunningChecksums, Table

#: Bytes after which the operating system is asked to start writing them to the disk.
_WRITE_BEHIND_BYTES = 1 << 24
#: Bytes that are written at once, at multiples of themselves: a huge page of memory. Linux keeps
#: such a write as one page in its page cache, and a process that maps the file takes one page
#: fault for it instead of hundreds (ext4 since 6.16, XFS).
_UNIT = 1 << 21
#: Bytes of a file that are written so, a multiple of both units, and the unit of what follows.
#: Virtual machines whose host takes unused memory back wait for each huge page: without this limit
#: writing gigabytes took three times as long.
_HUGE_UP_TO, _SMALL_UNIT = 1 << 27, 1 << 18


class Recorder:
    """Writes the files of one archive and records their checksums.

    Parameters
    ----------
    root
        Directory of the archive.
    before
        Checksums of files that the directory has already, as hard links to those of an archive. A
        new file takes the place of a link, and never changes the content that links share.
    """

    def __init__(self, root: str, before: Table | None = None) -> None:
        self.root = root
        self._replaces = before is not None
        files = {} if before is None else before.files
        self._running = {key: RunningChecksums.continued(sums) for key, sums in files.items()}
        self._files: WeakSet[CheckedFile] = WeakSet()

    def create(self, path: str) -> CheckedFile:
        """Create a file, which must not exist unless it is a link; `path` is absolute."""
        self.unlink(self._key(path))
        running = RunningChecksums()
        file = CheckedFile(path, running)
        self._running[self._key(path)] = running
        self._files.add(file)
        return file

    def grow(self, path: str) -> CheckedFile:
        """Open a file to append to it; bytes beyond its recorded size are dropped."""
        file = CheckedFile(path, self._running[self._key(path)], grows=True)
        self._files.add(file)
        return file

    def close(self) -> None:
        """Close the files that are open, with what they keep in memory."""
        for file in list(self._files):
            file.close()

    def discard(self) -> None:
        """Close the files that are open, whose content is not needed."""
        for file in list(self._files):
            file.discard()

    def size(self, path: str) -> int:
        """Recorded size of a file in bytes; `path` is absolute."""
        return self._running[self._key(path)].size

    def write(self, path: str, data: bytes) -> None:
        """Write a whole file; `path` is absolute."""
        with self.create(path) as file:
            file.write(data)

    def unlink(self, key: str) -> None:
        """Remove a link that a new file replaces, if there is one."""
        if self._replaces:
            with contextlib.suppress(FileNotFoundError):
                os.unlink(os.path.join(self.root, key))
            self._running.pop(key, None)

    def rename(self, old: str, new: str) -> None:
        """Rename a file or a directory; the paths are absolute."""
        os.rename(old, new)
        before, after = self._key(old), self._key(new)
        for key in self._below(before):
            self._running[after + key[len(before) :]] = self._running.pop(key)

    def forget(self, prefix: str) -> None:
        """Drop the checksums of a file, or of all files in a directory; `prefix` is relative."""
        for key in self._below(prefix.rstrip("/")):
            self._running.pop(key, None)

    def remove(self, directory: str) -> None:
        """Remove a directory, if it exists; the path is absolute."""
        shutil.rmtree(directory, ignore_errors=True)
        self.forget(self._key(directory))

    def _below(self, prefix: str) -> list[str]:
        inside = f"{prefix}/" if prefix else ""
        return [key for key in list(self._running) if key == prefix or key.startswith(inside)]

    def _key(self, path: str) -> str:
        return os.path.relpath(path, self.root).replace(os.sep, "/")

    def table(self) -> Table:
        """Checksums of all recorded files."""
        return Table({key: running.result() for key, running in self._running.items()})


class CheckedFile:
    """A file that is written sequentially, with running checksums; pyarrow can write to it.

    It is new, or continues after bytes whose checksums are known. Up to 2 MB are kept in memory
    until the file is closed.
    """

    def __init__(self, path: str, running: RunningChecksums, *, grows: bool = False) -> None:
        self._running = running
        #: Bytes of the file with those in memory, without them, and those that the system was
        #: asked to write to the disk.
        self._position = self._written = self._sent = running.size
        #: The bytes after those that are written, up to the next multiple of a unit.
        self._kept = memoryview(b"")
        how = 0 if grows else os.O_CREAT | os.O_EXCL
        self._descriptor = os.open(path, os.O_WRONLY | how, 0o666)
        if grows:
            try:
                os.ftruncate(self._descriptor, running.size)
                os.lseek(self._descriptor, running.size, os.SEEK_SET)
            except BaseException:
                self.discard()
                raise

    def write(self, data: Any) -> int:
        """Write all of the bytes, or keep them until enough follow."""
        rest = memoryview(data).cast("B")
        size = len(rest)
        while rest:
            unit = _UNIT if self._position < _HUGE_UP_TO else _SMALL_UNIT
            part = rest[: unit - self._position % unit]
            rest = rest[len(part) :]
            # Each part is written right after its checksum, while it is still in the cache.
            self._running.update(part)
            n_kept = self._position - self._written
            self._position += len(part)
            if self._position % unit == 0:
                self._write(self._kept[:n_kept], part)
            else:
                self._kept = self._kept or np.empty(_UNIT, np.uint8).data
                self._kept[n_kept : n_kept + len(part)] = part
        return size

    def _write(self, *parts: memoryview) -> None:
        left = [part for part in parts if part]
        while left:
            many = len(left) > 1 and hasattr(os, "writev")
            n = os.writev(self._descriptor, left) if many else os.write(self._descriptor, left[0])
            self._written += n
            while left and n >= len(left[0]):
                n -= len(left.pop(0))
            if n:
                left[0] = left[0][n:]
        if self._written - self._sent >= _WRITE_BEHIND_BYTES:
            write_behind(self._descriptor, self._sent, self._written - self._sent)
            self._sent = self._written

    def tell(self) -> int:
        """Size of the file in bytes once it is closed."""
        return self._position

    def flush(self) -> None:
        """Do nothing, as only closing the file writes all of it."""

    @property
    def closed(self) -> bool:
        """Whether the file is closed."""
        return self._descriptor < 0

    def close(self) -> None:
        """Write what is in memory and close the file; closing it again does nothing."""
        try:
            if not self.closed:
                self._write(self._kept[: self._position - self._written])
        finally:
            self.discard()

    def discard(self) -> None:
        """Close the file without writing what is in memory, as it is not needed."""
        if self._descriptor >= 0:
            descriptor, self._descriptor = self._descriptor, -1
            self._kept = memoryview(b"")
            os.close(descriptor)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: object, *_: object) -> None:
        if kind is None:
            self.close()
        else:
            self.discard()


#: SYNC_FILE_RANGE_WRITE of ``sync_file_range``: start writing without waiting.
_SYNC_FILE_RANGE_WRITE = 2


def write_behind(descriptor: int, start: int, n_bytes: int) -> None:
    """Ask the operating system to start writing a range of a file to the disk.

    Otherwise it starts only when many bytes are waiting, or when the file is flushed, and flushing
    then takes long. Errors are ignored: flushing the file reports them.
    """
    types = ctypes.c_int, ctypes.c_int64, ctypes.c_int64, ctypes.c_uint
    # Only Linux has it.
    if sync_file_range := c_function("sync_file_range", *types):
        sync_file_range(descriptor, start, n_bytes, _SYNC_FILE_RANGE_WRITE)
