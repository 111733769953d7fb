"""Files of a store, and the pieces of them to read."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Sequence
from typing import NamedTuple, Protocol

import numpy as np
from numpy.typing import NDArray

from storage_backends.compute.caching import LRUCache
from storage_backends.directory import files as archive_files
from storage_backends.directory.content import Content
from storage_backends.directory.mapped_file import MappedFile, map_files
from storage_backends.errors import COPY_AGAIN, ArchiveChangedError, ArchiveFormatError

#: Maximum of cached shard indexes, and of open files beside the held ones, per archive.
_MOST_OPEN = 128


class Pieces(NamedTuple):
    """Parts of files.

    Attributes
    ----------
    keys
        The files.
    file, offset, length
        Of each part its file, as a position in `keys`, and its bytes there; int64.
    """

    keys: Sequence[str]
    file: NDArray[np.int64]
    offset: NDArray[np.int64]
    length: NDArray[np.int64]

    def part(self, start: int, stop: int) -> Pieces:
        """Some of the pieces."""
        chosen = slice(start, stop)
        return Pieces(self.keys, self.file[chosen], self.offset[chosen], self.length[chosen])


class Files(Protocol):
    """Where the files of an archive are read from."""

    def size(self, key: str) -> int | None:
        """Bytes of a file; None where there is none."""

    def tail(self, key: str, length: int) -> bytes | None:
        """The last `length` bytes of a file, fewer if it is shorter; None where there is none."""

    def fetch(self, pieces: Pieces) -> Content:
        """The bytes of pieces; ArchiveFormatError where a file ends before a piece does."""

    def total(self, prefix: str) -> int:
        """Bytes of all files whose key begins with the path `prefix`."""

    def close(self) -> None:
        """Release files and memory."""


class LocalFiles:
    """Files of a directory, some held for the life of the archive, others cached while open.

    Attributes
    ----------
    is_current
        Whether the directory is the one that was opened.

    Parameters
    ----------
    before_reading
        Called with the key of a file before it is read.
    """

    def __init__(self, root: str, before_reading: Callable[[str], None] | None = None) -> None:
        self.root = root
        self.is_current: Callable[[], bool] = lambda: True
        self._before_reading = before_reading or (lambda key: None)
        self._open = LRUCache[str, MappedFile](_MOST_OPEN)
        self._held: dict[str, MappedFile] = {}

    def hold(self, keys: Iterable[str]) -> None:
        """Map files so that they outlive their removal; only the first of very many."""
        self._held = map_files(keys, self._open_file)

    def held(self, key: str) -> NDArray[np.uint8] | None:
        """The bytes of a file, where it is held."""
        file = self._held.get(key)
        if file is None:
            return None
        self._before_reading(key)
        return file.data

    def check_current(self) -> None:
        """Raise ArchiveChangedError if this archive was replaced by another."""
        if not self.is_current():
            raise ArchiveChangedError(
                f"{self.root}: the archive was replaced since it was opened, and not all of its "
                "files are held; open it again"
            )

    def _open_file(self, key: str) -> MappedFile:
        return MappedFile(archive_files.file_path(self.root, key))

    def _file(self, key: str) -> MappedFile | None:
        self._before_reading(key)
        file = self._held.get(key) or self._open.get(key)
        if file is not None:
            return file
        try:
            file = self._open_file(key)
        except (FileNotFoundError, NotADirectoryError):
            file = None
        # Check after opening: the archive may have been replaced in between.
        self.check_current()
        # The file is unmapped once no reader refers to it.
        return None if file is None else self._open.setdefault(key, file)

    def size(self, key: str) -> int | None:
        file = self._file(key)
        return None if file is None else len(file.data)

    def tail(self, key: str, length: int) -> bytes | None:
        file = self._file(key)
        return None if file is None else file.data[-length:].tobytes()

    def fetch(self, pieces: Pieces) -> Content:
        files = [self._file(key) for key in pieces.keys]
        sizes = np.array([0 if file is None else len(file.data) for file in files])
        sizes_of = sizes[pieces.file]
        beyond = (pieces.offset > sizes_of) | (pieces.length > sizes_of - pieces.offset)
        if beyond.any():
            key = pieces.keys[pieces.file[beyond.argmax()]]
            raise ArchiveFormatError(
                f"{self.root}: the file {key} is truncated or missing; {COPY_AGAIN}"
            )
        if len(pieces.file) > 1:
            # The system reads ahead while the first chunks are decoded.
            ahead, _ = spans(pieces, gap=1 << 16)
            for number, offset, length in zip(*(a.tolist() for a in ahead[1:]), strict=True):
                file = files[number]
                assert file is not None
                file.will_need(offset, length)
        starts = np.array([0 if file is None else file.address for file in files])
        return Content(starts[pieces.file] + pieces.offset, pieces.length, files)

    def total(self, prefix: str) -> int:
        return sum(archive_files.file_sizes(os.path.join(self.root, prefix)).values())

    def close(self) -> None:
        self._open.clear()
        self._held = {}


def spans(pieces: Pieces, gap: int) -> tuple[Pieces, NDArray[np.int64]]:
    """Join pieces that follow each other in a file, at most `gap` bytes apart.

    Returns
    -------
    spans, starts
        The joined pieces, and where each piece begins when these stand one after the other.
    """
    _, file, offset, length = pieces
    ends = offset + length
    apart = offset[1:] - ends[:-1]
    breaks = np.flatnonzero((file[1:] != file[:-1]) | (apart < 0) | (apart > gap)) + 1
    first = np.concatenate([[0], breaks]) if len(file) else breaks
    last = np.concatenate([breaks, [len(file)]])[: len(first)] - 1
    joined = ends[last] - offset[first]
    before = np.cumsum(joined) - joined
    of_piece = np.repeat(np.arange(len(first)), last - first + 1)
    starts = before[of_piece] + offset - offset[first][of_piece]
    return Pieces(pieces.keys, file[first], offset[first], joined), starts
