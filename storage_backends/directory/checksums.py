"""CRC32C of every block of every file of an archive, computed while the files are written.

The checksums are stored in one file of the archive. Numbers are little-endian::

    char[8] "SCDLCRC1"    uint64 n    n bytes of JSON: {"block": B, "files": [[path, size], ...]}
    uint32 for each block of the first file, then of the second, and so on
    uint32                the CRC32C of everything before

A block is B bytes; the last block of a file may be shorter. Paths are relative to the archive,
with ``/``.
"""

from __future__ import annotations

import contextlib
import ctypes
import json
import os
import shutil
import struct
from collections.abc import Callable, Mapping
from functools import cache
from typing import Any, NamedTuple, Self

import numpy as np
from numpy.typing import NDArray

from storage_backends.directory.content import CHECKSUM_BYTES, checksum, crc32c
from storage_backends.errors import ArchiveFormatError

#: Bytes per checksum.
BLOCK = 1 << 20
#: Limit of the block size that a file may declare, which bounds the memory of a reader.
_MAX_BLOCK = 1 << 26
#: Bytes after which the operating system is asked to start writing them to the disk.
_WRITE_BEHIND_BYTES = 1 << 24
_MAGIC = b"SCDLCRC1"
_LENGTH = struct.Struct("<8sQ")


class FileChecksums(NamedTuple):
    """Size of a file, and checksums of its blocks."""

    size: int
    #: Checksum of each block, uint32.
    blocks: NDArray[np.uint32]


class RunningChecksums:
    """Checksums of one file, computed incrementally while it is written."""

    def __init__(self, block: int = BLOCK) -> None:
        self._block = block
        self._size = 0
        self._done: list[int] = []
        self._last = 0

    @classmethod
    def continued(cls, sums: FileChecksums, block: int = BLOCK) -> Self:
        """Checksums of a file that was written before and grows."""
        running = cls(block)
        running._size = sums.size
        running._done = sums.blocks[: sums.size // block].tolist()
        running._last = int(sums.blocks[-1]) if sums.size % block else 0
        return running

    def update(self, data: bytes | memoryview) -> None:
        """Add the next bytes of the file."""
        position = 0
        while position < len(data):
            within = self._size % self._block
            part = data[position : position + self._block - within]
            self._last = crc32c(part, self._last)
            self._size += len(part)
            position += len(part)
            if self._size % self._block == 0:
                self._done.append(self._last)
                self._last = 0

    @property
    def size(self) -> int:
        """Number of bytes added so far."""
        return self._size

    def result(self) -> FileChecksums:
        """Checksums of all bytes added so far."""
        rest = [self._last] if self._size % self._block else []
        return FileChecksums(self._size, np.array(self._done + rest, np.uint32))


def file_checksums(data: bytes | memoryview, block: int = BLOCK) -> FileChecksums:
    """Checksums of a file with content `data`."""
    running = RunningChecksums(block)
    running.update(data)
    return running.result()


def n_blocks(size: int, block: int = BLOCK) -> int:
    """Number of blocks of a file of `size` bytes."""
    return -(-size // block)


class Table(NamedTuple):
    """Checksums of the files of an archive, by path.

    Parameters
    ----------
    files
        Checksums of each file.
    block
        Bytes per checksum.
    """

    files: Mapping[str, FileChecksums]
    block: int = BLOCK

    def to_bytes(self) -> bytes:
        """Serialise to the format of the file of checksums."""
        listed = [[path, sums.size] for path, sums in sorted(self.files.items())]
        header = json.dumps({"block": self.block, "files": listed}).encode()
        sums = [sums.blocks.astype("<u4").tobytes() for _, sums in sorted(self.files.items())]
        content = b"".join([_LENGTH.pack(_MAGIC, len(header)), header, *sums])
        return content + checksum(content)

    def updated(self, files: Mapping[str, bytes]) -> Table:
        """Copy of the table with new checksums for files with new content, by path."""
        changed = {path: file_checksums(data, self.block) for path, data in files.items()}
        return Table({**self.files, **changed}, self.block)

    @classmethod
    def from_bytes(cls, data: bytes, where: str) -> Self:
        """Parse and validate; an ArchiveFormatError begins with `where`."""
        if len(data) < _LENGTH.size + CHECKSUM_BYTES or data[: len(_MAGIC)] != _MAGIC:
            raise ArchiveFormatError(f"{where}: this is not a file of scdl checksums; {_REMOVE}")
        content, stored = memoryview(data)[:-CHECKSUM_BYTES], data[-CHECKSUM_BYTES:]
        if checksum(content) != stored:
            raise ArchiveFormatError(f"{where}: the file of checksums is damaged; {_REMOVE}")
        end = _LENGTH.size + _LENGTH.unpack_from(data)[1]
        try:
            return cls._parse(json.loads(bytes(content[_LENGTH.size : end])), content[end:])
        except (ValueError, TypeError, KeyError, RecursionError) as error:
            raise ArchiveFormatError(
                f"{where}: this is not a file of scdl checksums ({error!r:.100}); {_REMOVE}"
            ) from error

    @classmethod
    def _parse(cls, header: Any, sums: memoryview) -> Self:
        block = header["block"]
        if type(block) is not int or not 1 <= block <= _MAX_BLOCK:
            raise ValueError(f"bad block {block!r:.50}")
        numbers, start, files = np.frombuffer(sums, "<u4"), 0, {}
        for path, size in header["files"]:
            if not _is_within(path) or type(size) is not int or size < 0 or path in files:
                raise ValueError(f"bad file {path!r:.50} of {size!r:.50} bytes")
            stop = start + n_blocks(size, block)
            files[path] = FileChecksums(size, numbers[start:stop])
            start = stop
        if start != len(numbers):
            raise ValueError(f"{len(numbers)} sums for {start} blocks")
        return cls(files, block)


_REMOVE = "remove the file, and add new checksums with `scdl verify --add-checksums`"


def _is_within(path: Any) -> bool:
    """Whether an untrusted relative path stays within the archive."""
    return isinstance(path, str) and "\0" not in path and not {"", ".", ".."} & {*path.split("/")}


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

    def create(self, path: str) -> CheckedFile:
        """Create a file, which must not exist unless it is a link; `path` is absolute."""
        self.unlink(self._key(path))
        running = RunningChecksums()
        file = CheckedFile(path, running)
        self._running[self._key(path)] = running
        return file

    def grow(self, path: str) -> CheckedFile:
        """Open a file to append to it; bytes beyond its recorded size are dropped."""
        return CheckedFile(path, self._running[self._key(path)], grows=True)

    def size(self, path: str) -> int:
        """Recorded size of a file in bytes; `path` is absolute."""
        return self._running[self._key(path)].size

    def write(self, path: str, data: bytes) -> None:
        """Write a whole file; `path` is absolute."""
        with self.create(path) as file:
            file.write(data)

    def note(self, key: str, data: bytes | memoryview) -> None:
        """Record the content of the file `key`, which other code wrote."""
        running = RunningChecksums()
        running.update(data)
        self._running[key] = running

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

    It is new, or continues after the bytes of which there are checksums.
    """

    def __init__(self, path: str, running: RunningChecksums, *, grows: bool = False) -> None:
        self._running = running
        #: Bytes written, and bytes that the system was asked to write to the disk.
        self._position = self._sent = running.size
        how = 0 if grows else os.O_CREAT | os.O_EXCL
        self._descriptor = os.open(path, os.O_WRONLY | how, 0o666)
        if grows:
            try:
                os.ftruncate(self._descriptor, running.size)
                os.lseek(self._descriptor, running.size, os.SEEK_SET)
            except BaseException:
                self.close()
                raise

    def write(self, data: Any) -> int:
        """Write all of the bytes."""
        rest = memoryview(data).cast("B")
        size = len(rest)
        # Write each block right after its checksum, while it is still in the cache.
        for start in range(0, size, BLOCK):
            part = rest[start : start + BLOCK]
            self._running.update(part)
            while part:
                part = part[os.write(self._descriptor, part) :]
        self._position += size
        if self._position - self._sent >= _WRITE_BEHIND_BYTES:
            write_behind(self._descriptor, self._sent, self._position - self._sent)
            self._sent = self._position
        return size

    def tell(self) -> int:
        """Bytes written so far."""
        return self._position

    def flush(self) -> None:
        """Do nothing, as writes are not buffered."""

    @property
    def closed(self) -> bool:
        """Whether the file is closed."""
        return self._descriptor < 0

    def close(self) -> None:
        """Close the file; closing it again does nothing."""
        if self._descriptor >= 0:
            descriptor, self._descriptor = self._descriptor, -1
            os.close(descriptor)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc_info: object) -> None:
        self.close()


#: SYNC_FILE_RANGE_WRITE of ``sync_file_range``: start writing without waiting.
_SYNC_FILE_RANGE_WRITE = 2


def write_behind(descriptor: int, start: int, n_bytes: int) -> None:
    """Ask the operating system to start writing a range of a file to the disk.

    Otherwise it starts only when many bytes are waiting, or when the file is flushed, and flushing
    then takes long. Errors are ignored: flushing the file reports them.
    """
    if sync_file_range := _sync_file_range():
        sync_file_range(descriptor, start, n_bytes, _SYNC_FILE_RANGE_WRITE)


@cache
def _sync_file_range() -> Callable[[int, int, int, int], int] | None:
    """The Linux function ``sync_file_range``, or None if it does not exist."""
    try:
        function = ctypes.CDLL(None).sync_file_range
    except (OSError, AttributeError, TypeError):
        return None
    function.argtypes = [ctypes.c_int, ctypes.c_int64, ctypes.c_int64, ctypes.c_uint]
    typed: Callable[[int, int, int, int], int] = function
    return typed
