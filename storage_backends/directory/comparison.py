"""Comparison of the files of an archive with their checksums, piece by piece."""

from __future__ import annotations

import errno
import os
import threading
from collections.abc import Iterator, Mapping
from functools import partial
from typing import NamedTuple

from storage_backends.capabilities import Finding, Piece, Verdict
from storage_backends.directory.checksums import FileChecksums, n_blocks
from storage_backends.directory.content import crc32c
from storage_backends.errors import COPY_AGAIN, ArchiveFormatError

#: Bytes to read at once. Larger pieces delay the first file that is completely compared.
PIECE = 1 << 20
_IF_INTENDED = (
    "if another program changed it on purpose, remove {} and run `scdl verify --add-checksums`"
)

_thread_local = threading.local()


class ArchivePaths(NamedTuple):
    """Paths of an archive, its files and its checksums."""

    root: str
    checksums: str

    @property
    def table(self) -> str:
        """Path of the file of checksums."""
        return os.path.join(self.root, self.checksums)

    def file(self, key: str) -> str:
        """Path of a file."""
        return os.path.join(self.root, *key.split("/"))

    @property
    def advice(self) -> str:
        """Advice for files that do not match their checksums."""
        return f"{COPY_AGAIN}; {_IF_INTENDED.format(self.table)}"


class Comparison:
    """Comparison of files with their checksums; an iterable of pieces for any threads.

    Each piece is compared only once.

    Parameters
    ----------
    files
        Expected checksums of each file, in the order of comparison.
    block
        Bytes per checksum.
    """

    def __init__(self, paths: ArchivePaths, files: Mapping[str, FileChecksums], block: int) -> None:
        self._paths, self._files, self._block = paths, files, block
        self._step = max(1, PIECE // block) * block
        self._changed = threading.Condition()
        #: Pieces being compared, start of the sound pieces of each file, and sound files.
        self._running: set[tuple[str, int]] = set()
        self._compared: dict[str, set[int]] = {}
        self._sound: set[str] = set()

    def __iter__(self) -> Iterator[Piece]:
        for key, sums in self._files.items():
            for start in range(0, sums.size, self._step):
                nbytes = min(self._step, sums.size - start)
                yield Piece(nbytes, partial(self._compare, key, start))

    def require(self, key: str) -> None:
        """Compare the remaining pieces of a file; ArchiveFormatError if it is damaged."""
        if key in self._sound or key not in self._files:
            return
        for start in range(0, self._files[key].size, self._step):
            finding = self._compare(key, start)
            # A file that may not be read may still be sound; reading it raises its own error.
            if finding is not None and finding.verdict is Verdict.DAMAGED:
                raise ArchiveFormatError(finding.message)

    def _compare(self, key: str, start: int) -> Finding | None:
        piece = key, start
        with self._changed:
            self._changed.wait_for(lambda: piece not in self._running)
            if key in self._sound or start in self._compared.get(key, ()):
                return None
            self._running.add(piece)
        try:
            finding = self._check_piece(key, start)
            if finding is None:
                with self._changed:
                    self._mark_sound(key, start)
            return finding
        finally:
            with self._changed:
                self._running.remove(piece)
                self._changed.notify_all()

    def _mark_sound(self, key: str, start: int) -> None:
        compared = self._compared.setdefault(key, set())
        compared.add(start)
        if len(compared) == n_blocks(self._files[key].size, self._step):
            # Remember only the file: large archives have too many pieces.
            del self._compared[key]
            self._sound.add(key)

    def _check_piece(self, key: str, start: int) -> Finding | None:
        sums, path = self._files[key], self._paths.file(key)
        try:
            data = _read_piece(path, start, min(self._step, sums.size - start))
        except OSError as error:
            return unreadable_finding(path, error)
        first = start // self._block
        expected = sums.blocks[first : first + self._step // self._block].tolist()
        for i, wanted in enumerate(expected):
            block = data[i * self._block : (i + 1) * self._block]
            actual = crc32c(block)
            if actual != wanted:
                offset = start + i * self._block
                return Finding(
                    f"{path}: bytes {offset:,} to {offset + len(block):,} differ from those "
                    f"written: expected the checksum {wanted:08x}, found {actual:08x}; "
                    f"{self._paths.advice}"
                )
        return None


def _read_piece(path: str, start: int, nbytes: int) -> memoryview:
    """Read bytes of a file into the buffer of this thread; fewer at the end of the file."""
    buffer: bytearray | None = getattr(_thread_local, "buffer", None)
    if buffer is None or len(buffer) < nbytes:
        buffer = _thread_local.buffer = bytearray(max(nbytes, PIECE))
    view, filled = memoryview(buffer)[:nbytes], 0
    with open(path, "rb", buffering=0) as file:
        file.seek(start)
        while n := file.readinto(view[filled:]):
            filled += n
    return view[:filled]


def unreadable_finding(path: str, error: OSError) -> Finding:
    """Convert an error of the operating system to a finding."""
    # An I/O error means lost data; a file without read permission may be sound.
    verdict = Verdict.DAMAGED if error.errno == errno.EIO else Verdict.UNKNOWN
    return Finding(f"{path}: cannot be read: {error.strerror or error}", verdict)
