"""Comparing the files of an archive with their checksums, piece by piece, each once."""

from __future__ import annotations

import errno
import os
import threading
from collections.abc import Iterator, Mapping
from functools import partial
from typing import NamedTuple

from storage_backends.capabilities import Finding, Piece, Verdict
from storage_backends.directory.checksums import Sums, n_blocks
from storage_backends.directory.content import crc32c
from storage_backends.errors import COPY_AGAIN, ArchiveFormatError

#: Bytes that are read at once; the more, the later is the first file compared, and can be read.
PIECE = 1 << 20
_CHANGED = (
    "if another program changed it on purpose, remove {} and run `scdl verify --add-checksums`"
)

_memory = threading.local()


class Place(NamedTuple):
    """Where an archive and its checksums are."""

    root: str
    checksums: str

    @property
    def table(self) -> str:
        """Path of the checksums."""
        return os.path.join(self.root, self.checksums)

    def path(self, key: str) -> str:
        """Path of a file."""
        return os.path.join(self.root, *key.split("/"))

    @property
    def advice(self) -> str:
        """What to do about other bytes than were written."""
        return f"{COPY_AGAIN}; {_CHANGED.format(self.table)}"


class Comparison:
    """Files whose pieces any threads may compare; goes through all pieces, made as they are needed.

    Parameters
    ----------
    files
        What is expected of each, in the order in which they are gone through.
    block
        Bytes of which there is a checksum each.
    """

    def __init__(self, place: Place, files: Mapping[str, Sums], block: int) -> None:
        self._place, self._files, self._block = place, files, block
        self._step = max(1, PIECE // block) * block
        self._changed = threading.Condition()
        #: Where pieces start: of those being compared, and of those that are sound.
        self._running: set[tuple[str, int]] = set()
        self._compared: dict[str, set[int]] = {}
        self._sound: set[str] = set()

    def __iter__(self) -> Iterator[Piece]:
        for key, sums in self._files.items():
            for start in range(0, sums.size, self._step):
                nbytes = min(self._step, sums.size - start)
                yield Piece(nbytes, partial(self._compare, key, start))

    def require(self, key: str) -> None:
        """Compare what was not compared yet of a file; ArchiveFormatError where it is damaged."""
        if key in self._sound or key not in self._files:
            return
        for start in range(0, self._files[key].size, self._step):
            found = self._compare(key, start)
            # What may not be read may be sound; reading it says the same.
            if found is not None and found.verdict is Verdict.DAMAGED:
                raise ArchiveFormatError(found.message)

    def _compare(self, key: str, start: int) -> Finding | None:
        piece = key, start
        with self._changed:
            self._changed.wait_for(lambda: piece not in self._running)
            if key in self._sound or start in self._compared.get(key, ()):
                return None
            self._running.add(piece)
        try:
            found = self._check(key, start)
            if found is None:
                with self._changed:
                    self._note_sound(key, start)
            return found
        finally:
            with self._changed:
                self._running.remove(piece)
                self._changed.notify_all()

    def _note_sound(self, key: str, start: int) -> None:
        compared = self._compared.setdefault(key, set())
        compared.add(start)
        if len(compared) == n_blocks(self._files[key].size, self._step):
            # Of large archives the pieces would be too many to remember.
            del self._compared[key]
            self._sound.add(key)

    def _check(self, key: str, start: int) -> Finding | None:
        sums, path = self._files[key], self._place.path(key)
        try:
            data = _read(path, start, min(self._step, sums.size - start))
        except OSError as error:
            return unreadable(path, error)
        first = start // self._block
        expected = sums.blocks[first : first + self._step // self._block].tolist()
        for i, wanted in enumerate(expected):
            part = data[i * self._block : (i + 1) * self._block]
            found = crc32c(part)
            if found != wanted:
                where = start + i * self._block
                return Finding(
                    f"{path}: bytes {where:,} to {where + len(part):,} are not those that were "
                    f"written: expected the checksum {wanted:08x}, found {found:08x}; "
                    f"{self._place.advice}"
                )
        return None


def _read(path: str, start: int, nbytes: int) -> memoryview:
    """Some bytes of a file, fewer where it ends; in memory of this thread that is used again."""
    memory: bytearray | None = getattr(_memory, "bytes", None)
    if memory is None or len(memory) < nbytes:
        memory = _memory.bytes = bytearray(max(nbytes, PIECE))
    view, filled = memoryview(memory)[:nbytes], 0
    descriptor = os.open(path, os.O_RDONLY)
    try:
        while filled < nbytes:
            n = os.preadv(descriptor, [view[filled:]], start + filled)
            if n == 0:
                break
            filled += n
    finally:
        os.close(descriptor)
    return view[:filled]


def unreadable(path: str, error: OSError) -> Finding:
    """What follows from an error of the system."""
    # A disk that cannot read a sector has lost it; a file that may not be read may be sound.
    verdict = Verdict.DAMAGED if error.errno == errno.EIO else Verdict.UNKNOWN
    return Finding(f"{path}: cannot be read: {error.strerror or error}", verdict)
