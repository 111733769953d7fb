"""CRC32C of every block of every file of an archive, computed while the files are written.

The checksums are stored in one file of the archive. Numbers are little-endian::

    char[8] "SCDLCRC1"    uint64 n    n bytes of JSON: {"block": B, "files": [[path, size], ...]}
    uint32 for each block of the first file, then of the second, and so on
    uint32                the CRC32C of everything before

A block is B bytes; the last block of a file may be shorter. Paths are relative to the archive,
with ``/``.
"""

from __future__ import annotations

import json
import struct
from collections.abc import Mapping
from typing import Any, NamedTuple, Self

import numpy as np
from numpy.typing import NDArray

from storage_backends.directory.content import CHECKSUM_BYTES, checksum, crc32c
from storage_backends.errors import ArchiveFormatError

#: Bytes per checksum.
BLOCK = 1 << 20
#: Limit of the block size that a file may declare, which bounds the memory of a reader.
_MAX_BLOCK = 1 << 26
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
    def continued(cls, sums: FileChecksums) -> Self:
        """Checksums of a file that was written before and grows."""
        running = cls()
        running._size = sums.size
        running._done = sums.blocks[: sums.size // BLOCK].tolist()
        running._last = int(sums.blocks[-1]) if sums.size % BLOCK else 0
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
