"""CRC32C of every block of every file of an archive, computed while the files are written.

The sums stand in one file of the archive. Numbers are little-endian::

    char[8] "SCDLCRC1"    uint64 n    n bytes of JSON: {"block": B, "files": [[path, size], ...]}
    uint32 for each block of the first file, then of the second, and so on
    uint32                the CRC32C of all that stands before

A block is B bytes, the last of a file what remains. Paths are relative to the archive, with ``/``.
"""

from __future__ import annotations

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

#: Bytes that share a checksum.
BLOCK = 1 << 20
#: What a reader holds at once must not depend on what a file says.
_LARGEST_BLOCK = 1 << 26
#: Bytes after which the system is told to write them to the disk.
_BEHIND = 1 << 24
_MAGIC = b"SCDLCRC1"
_LENGTH = struct.Struct("<8sQ")


class Sums(NamedTuple):
    """Checksums of one file."""

    size: int
    #: uint32, of each block.
    blocks: NDArray[np.uint32]


class Running:
    """Checksums of what is written to one file, piece by piece."""

    def __init__(self, block: int = BLOCK) -> None:
        self._block = block
        self._size = 0
        self._done: list[int] = []
        self._last = 0

    def update(self, data: bytes | memoryview) -> None:
        """Take in what follows."""
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

    def sums(self) -> Sums:
        """Checksums of all that was taken in."""
        rest = [self._last] if self._size % self._block else []
        return Sums(self._size, np.array(self._done + rest, np.uint32))


def sums_of(data: bytes | memoryview, block: int = BLOCK) -> Sums:
    """Checksums of a file that holds `data`."""
    running = Running(block)
    running.update(data)
    return running.sums()


def n_blocks(size: int, block: int = BLOCK) -> int:
    """Blocks of a file of `size` bytes."""
    return -(-size // block)


class Table(NamedTuple):
    """Checksums of the files of an archive, by path.

    Parameters
    ----------
    block
        Bytes that share a checksum.
    """

    files: Mapping[str, Sums]
    block: int = BLOCK

    def to_bytes(self) -> bytes:
        """As the file that holds them."""
        listed = [[path, sums.size] for path, sums in sorted(self.files.items())]
        said = json.dumps({"block": self.block, "files": listed}).encode()
        sums = [sums.blocks.astype("<u4").tobytes() for _, sums in sorted(self.files.items())]
        content = b"".join([_LENGTH.pack(_MAGIC, len(said)), said, *sums])
        return content + checksum(content)

    def renewed(self, files: Mapping[str, bytes]) -> Table:
        """With the checksums of files that now hold something else, by path."""
        renewed = {path: sums_of(data, self.block) for path, data in files.items()}
        return Table({**self.files, **renewed}, self.block)

    @classmethod
    def from_bytes(cls, data: bytes, where: str) -> Self:
        """Parse and check; `where` opens the message of an ArchiveFormatError."""
        if len(data) < _LENGTH.size + CHECKSUM_BYTES or data[: len(_MAGIC)] != _MAGIC:
            raise ArchiveFormatError(f"{where}: these are no checksums of scdl; {_REMOVE}")
        content, sum_ = memoryview(data)[:-CHECKSUM_BYTES], data[-CHECKSUM_BYTES:]
        if checksum(content) != sum_:
            raise ArchiveFormatError(f"{where}: the checksums are damaged themselves; {_REMOVE}")
        end = _LENGTH.size + _LENGTH.unpack_from(data)[1]
        try:
            return cls._parse(json.loads(bytes(content[_LENGTH.size : end])), content[end:])
        except (ValueError, TypeError, KeyError, RecursionError) as error:
            raise ArchiveFormatError(
                f"{where}: these are no checksums of scdl ({error!r:.100}); {_REMOVE}"
            ) from error

    @classmethod
    def _parse(cls, said: Any, sums: memoryview) -> Self:
        block = said["block"]
        if type(block) is not int or not 1 <= block <= _LARGEST_BLOCK:
            raise ValueError(f"bad block {block!r:.50}")
        numbers, start, files = np.frombuffer(sums, "<u4"), 0, {}
        for path, size in said["files"]:
            if not _is_within(path) or type(size) is not int or size < 0 or path in files:
                raise ValueError(f"bad file {path!r:.50} of {size!r:.50} bytes")
            stop = start + n_blocks(size, block)
            files[path] = Sums(size, numbers[start:stop])
            start = stop
        if start != len(numbers):
            raise ValueError(f"{len(numbers)} sums for {start} blocks")
        return cls(files, block)


_REMOVE = "remove the file, and give new ones with `scdl verify --add-checksums`"


def _is_within(path: Any) -> bool:
    """Whether a path of others stays within the archive."""
    return isinstance(path, str) and "\0" not in path and not {"", ".", ".."} & {*path.split("/")}


class Recorder:
    """Writes the files of one archive, and knows the checksums of what it wrote.

    Parameters
    ----------
    root
        Directory of the archive.
    """

    def __init__(self, root: str) -> None:
        self.root = root
        self._running: dict[str, Running] = {}

    def create(self, path: str) -> CheckedFile:
        """Begin a file, which must not exist; `path` is absolute."""
        running = Running()
        file = CheckedFile(path, running)
        self._running[self._key(path)] = running
        return file

    def write(self, path: str, data: bytes) -> None:
        """Write a whole file; `path` is absolute."""
        with self.create(path) as file:
            file.write(data)

    def note(self, key: str, data: bytes | memoryview) -> None:
        """Record what another wrote to the file `key`."""
        running = Running()
        running.update(data)
        self._running[key] = running

    def rename(self, old: str, new: str) -> None:
        """Rename a file or a directory; the paths are absolute."""
        os.rename(old, new)
        before, after = self._key(old), self._key(new)
        for key in self._below(before):
            self._running[after + key[len(before) :]] = self._running.pop(key)

    def forget(self, prefix: str) -> None:
        """Know nothing any more of a file, or of those of a directory; `prefix` is relative."""
        for key in self._below(prefix.rstrip("/")):
            self._running.pop(key, None)

    def remove(self, directory: str) -> None:
        """Remove a directory, where it is there; the path is absolute."""
        shutil.rmtree(directory, ignore_errors=True)
        self.forget(self._key(directory))

    def _below(self, prefix: str) -> list[str]:
        inside = f"{prefix}/" if prefix else ""
        return [key for key in list(self._running) if key == prefix or key.startswith(inside)]

    def _key(self, path: str) -> str:
        return os.path.relpath(path, self.root).replace(os.sep, "/")

    def table(self) -> Table:
        """Checksums of all that was written."""
        return Table({key: running.sums() for key, running in self._running.items()})


class CheckedFile:
    """A file that is written from front to back, with running checksums; pyarrow writes to it."""

    def __init__(self, path: str, running: Running) -> None:
        self._running = running
        #: Bytes written, and those of them that are on their way to the disk.
        self._position, self._sent = 0, 0
        self._descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o666)

    def write(self, data: Any) -> int:
        """Write bytes, all of them."""
        rest = memoryview(data).cast("B")
        size = len(rest)
        # A core that has just computed a checksum has the block at hand.
        for start in range(0, size, BLOCK):
            part = rest[start : start + BLOCK]
            self._running.update(part)
            while part:
                part = part[os.write(self._descriptor, part) :]
        self._position += size
        if self._position - self._sent >= _BEHIND:
            write_behind(self._descriptor, self._sent, self._position - self._sent)
            self._sent = self._position
        return size

    def tell(self) -> int:
        """Bytes written so far."""
        return self._position

    def flush(self) -> None:
        """Nothing is held back."""

    @property
    def closed(self) -> bool:
        """Whether it was closed."""
        return self._descriptor < 0

    def close(self) -> None:
        """Close; again does nothing."""
        if self._descriptor >= 0:
            descriptor, self._descriptor = self._descriptor, -1
            os.close(descriptor)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc_info: object) -> None:
        self.close()


#: Of ``sync_file_range``: begin to write, and wait for nothing.
_BEGIN = 2


def write_behind(descriptor: int, start: int, n_bytes: int) -> None:
    """Begin to write a range of a file to the disk.

    Otherwise the system begins when much has gathered, or when the file is flushed, which then
    takes as long as the disk does. Nothing is promised: whatever goes wrong flushing tells.
    """
    if begin := _sync_file_range():
        begin(descriptor, start, n_bytes, _BEGIN)


@cache
def _sync_file_range() -> Callable[[int, int, int, int], int] | None:
    """The function of Linux; None where there is none."""
    try:
        function = ctypes.CDLL(None).sync_file_range
    except (OSError, AttributeError, TypeError):
        return None
    function.argtypes = [ctypes.c_int, ctypes.c_int64, ctypes.c_int64, ctypes.c_uint]
    called: Callable[[int, int, int, int], int] = function
    return called
