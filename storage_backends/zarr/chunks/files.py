"""Files of a store, and the pieces of them to read."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Sequence
from typing import Any, NamedTuple, Protocol

import numpy as np
from numpy.typing import NDArray

from storage_backends.compute.caching import LRUCache
from storage_backends.directory import files as archive_files
from storage_backends.directory.content import Content
from storage_backends.directory.mapped_file import MappedFile, map_files
from storage_backends.errors import COPY_AGAIN, ArchiveChangedError, ArchiveFormatError

#: Maximum number of open files per archive, besides those that stay mapped.
_MOST_OPEN = 128


class Pieces(NamedTuple):
    """Parts of files of one or several archives.

    Attributes
    ----------
    files
        The files, each as a reader and a key; all readers have the same type.
    file, offset, length
        Position in `files`, first byte and number of bytes of each part; int64.
    """

    files: Sequence[tuple[Any, str]]
    file: NDArray[np.int64]
    offset: NDArray[np.int64]
    length: NDArray[np.int64]


class Files(Protocol):
    """Reader of the files of an archive.

    Attributes
    ----------
    request_bytes
        Preferred size of a request in bytes; 0 if small requests cost little.
    """

    request_bytes: int

    def size(self, key: str) -> int | None:
        """Size of a file in bytes; None if it does not exist."""

    def tail(self, key: str, length: int) -> bytes | None:
        """The last `length` bytes of a file, fewer if it is shorter; None if it does not exist."""

    @staticmethod
    def tails(wanted: Sequence[tuple[Any, str, int]]) -> list[bytes | None]:
        """The last bytes of several files, each given by its reader, key and length."""

    @staticmethod
    def fetch(pieces: Pieces) -> Content:
        """The bytes of pieces; ArchiveFormatError if a file ends before a piece does."""

    @staticmethod
    def will_need(pieces: Pieces) -> Any:
        """Start to fetch pieces without waiting; keep the result as long as they are needed."""

    def total(self, prefix: str) -> int:
        """Size of all files below the path `prefix`, in bytes."""

    def close(self) -> None:
        """Release files and memory."""


class LocalFiles:
    """Files of a directory: some stay mapped while the archive is open, others are cached.

    Attributes
    ----------
    is_current
        Whether the directory is the one that was opened.

    Parameters
    ----------
    before_reading
        Called with the key of a file before it is read.
    """

    request_bytes = 0

    def __init__(self, root: str, before_reading: Callable[[str], None] | None = None) -> None:
        self.root = root
        self.is_current: Callable[[], bool] = lambda: True
        self._before_reading = before_reading or (lambda key: None)
        self._open = LRUCache[str, MappedFile](_MOST_OPEN)
        self._mapped: dict[str, MappedFile] = {}

    def hold(self, keys: Iterable[str]) -> None:
        """Map files, up to a limit, so that they stay readable after their removal."""
        self._mapped = map_files(keys, self._open_file)

    def mapped(self, key: str) -> NDArray[np.uint8] | None:
        """The bytes of a file that stays mapped; None for others."""
        file = self._mapped.get(key)
        if file is None:
            return None
        self._before_reading(key)
        return file.data

    def check_current(self) -> None:
        """Raise ArchiveChangedError if this archive was replaced by another."""
        if not self.is_current():
            raise ArchiveChangedError(
                f"{self.root}: the archive was replaced since it was opened, and not all of its "
                "files are mapped; open it again"
            )

    def _open_file(self, key: str) -> MappedFile:
        return MappedFile(archive_files.file_path(self.root, key))

    def _file(self, key: str) -> MappedFile | None:
        self._before_reading(key)
        file = self._mapped.get(key) or self._open.get(key)
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
        return None if file is None else file.size

    def tail(self, key: str, length: int) -> bytes | None:
        file = self._file(key)
        return None if file is None else file.data[-length:].tobytes()

    @staticmethod
    def tails(wanted: Sequence[tuple[LocalFiles, str, int]]) -> list[bytes | None]:
        return [owner.tail(key, length) for owner, key, length in wanted]

    @staticmethod
    def fetch(pieces: Pieces) -> Content:
        files = [owner._file(key) for owner, key in pieces.files]
        # Address and size of each file.
        places = np.array([(0, 0) if f is None else (f.address, f.size) for f in files], np.int64)
        start, size = places.reshape(-1, 2)[pieces.file].T
        beyond = (pieces.offset > size) | (pieces.length > size - pieces.offset)
        if beyond.any():
            owner, key = pieces.files[pieces.file[beyond.argmax()]]
            raise ArchiveFormatError(
                f"{owner.root}: the file {key} is truncated or missing; {COPY_AGAIN}"
            )
        return Content(start + pieces.offset, pieces.length, files)

    @staticmethod
    def will_need(pieces: Pieces) -> Any:
        from storage_backends.compute import read_ahead

        begin, length, files = LocalFiles.fetch(pieces)
        if not read_ahead.are_cold(begin):
            return False
        pages = read_ahead.SinglePages(file.data for file in files if file is not None)
        read_ahead.will_need(begin, begin + length)
        return pages

    def total(self, prefix: str) -> int:
        return sum(archive_files.file_sizes(os.path.join(self.root, prefix)).values())

    def close(self) -> None:
        self._open.clear()
        self._mapped = {}
