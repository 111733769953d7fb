"""A directory that keeps pages of remote files, shared by processes without locks.

For every remote file it has a file with its pages at their places, and one with an entry of eight
bytes per page: the CRC32C of the page and its length, both zero for a page that is not there. A
page counts only if it matches its entry, so a page that another process is writing, or that was
damaged, is fetched again.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import time
import uuid
import warnings
from collections.abc import Callable, Iterator, Sequence
from itertools import pairwise

import numpy as np
from numpy.typing import NDArray

from storage_backends.directory.content import CHECKSUM_BYTES, Content, checksum
from storage_backends.errors import ScdlWarning, refused_write
from storage_backends.zarr.codecs.blosc import checksums

_PAGES, _SUMS, _TAIL = ".pages", ".sums", ".tail"
#: Directory within the one that users name, as everything in it may be removed.
_OWN = "scdl-pages"
#: Bytes of an entry.
_ENTRY = 8
#: Temporary files of this age were left behind by a killed process.
_PART_SECONDS = 3_600
#: The size of the directory is checked after this share of the limit was written.
_CHECKS = 32


class PageCache:
    """Pages of the files of one archive.

    Parameters
    ----------
    directory
        The directory, which archives share.
    identity
        Differs between archives and their versions.
    megabytes
        Files used longest ago are removed while all archives together have more.
    page_bytes
        Bytes of a page.

    Raises
    ------
    ArchiveWriteError
        The directory cannot be made or written.
    """

    def __init__(self, directory: str, identity: bytes, megabytes: float, page_bytes: int) -> None:
        self._root = os.path.join(directory, _OWN)
        self._limit, self.page_bytes = int(megabytes * 1e6), page_bytes
        name = hashlib.sha256(identity + str(page_bytes).encode()).hexdigest()[:32]
        self._directory = os.path.join(self._root, name)
        self._is_writable, self._unchecked = True, 0
        self._used: set[str] = set()
        with refused_write(directory):
            os.makedirs(self._directory, exist_ok=True)
            os.unlink(self._replace(os.path.join(self._directory, "test"), b""))
        self._shrink()

    def _path(self, key: str) -> str:
        return os.path.join(self._directory, hashlib.sha256(key.encode()).hexdigest()[:32])

    def tail(self, key: str, length: int) -> bytes | None:
        """The last `length` bytes of a file; None if they are not there."""
        with contextlib.suppress(OSError), open(f"{self._path(key)}.{length}{_TAIL}", "rb") as file:
            data = file.read()
            if len(data) == length + CHECKSUM_BYTES and checksum(data[:length]) == data[length:]:
                return data[:length]
        return None

    def write_tail(self, key: str, data: bytes) -> None:
        """Keep the last bytes of a file."""

        def write() -> None:
            path = f"{self._path(key)}.{len(data)}{_TAIL}"
            self._replace(path, data + checksum(data))

        self._write(write, len(data))

    def read(self, key: str, pages: Sequence[int]) -> Iterator[tuple[int, NDArray[np.uint8]]]:
        """Yield runs of consecutive pages that are there: the first page, and their bytes.

        Parameters
        ----------
        pages
            Numbers of the wanted pages, rising.
        """
        path = self._path(key)
        with contextlib.suppress(OSError):
            with open(path + _SUMS, "rb") as sums:
                data = sums.read()
            entries = np.frombuffer(data, "<u4", len(data) // _ENTRY * 2).reshape(-1, 2)
            numbers = np.array(pages)
            numbers = numbers[numbers < len(entries)]
            length = entries[numbers, 1]
            numbers = numbers[(length > 0) & (length <= self.page_bytes)]
            if len(numbers):
                self._touch(path)
                yield from self._sound(path, numbers, entries[numbers])

    def _sound(
        self, path: str, numbers: NDArray[np.int64], entries: NDArray[np.uint32]
    ) -> Iterator[tuple[int, NDArray[np.uint8]]]:
        """Runs of those pages that match their entries."""
        size, expected, lengths = self.page_bytes, entries[:, 0], entries[:, 1].astype(np.int64)
        data = np.empty((len(numbers), size), np.uint8)
        # How many bytes of each page are there.
        available = np.empty(len(numbers), np.int64)
        with open(path + _PAGES, "rb", buffering=0) as file:
            for first, stop in _runs(np.diff(numbers) != 1):
                file.seek(int(numbers[first]) * size)
                n = file.readinto(data[first:stop].data)
                available[first:stop] = n - np.arange(stop - first) * size
        addresses = data.ctypes.data + np.arange(len(numbers)) * size
        is_sound = available >= lengths
        chosen = Content(addresses[is_sound], lengths[is_sound], data)
        is_sound[is_sound] = checksums(chosen) == expected[is_sound]
        # A page may only be followed by others if it is whole.
        ends = (np.diff(numbers) != 1) | ~is_sound[1:] | ~is_sound[:-1] | (lengths[:-1] < size)
        for first, stop in _runs(ends):
            if is_sound[first]:
                n_bytes = (stop - 1 - first) * size + int(lengths[stop - 1])
                yield int(numbers[first]), data[first:stop].reshape(-1)[:n_bytes]

    def write(self, key: str, first: int, data: NDArray[np.uint8]) -> None:
        """Keep consecutive pages of a file, of which the last may end with it."""
        if not len(data):
            return
        starts = np.arange(0, len(data), self.page_bytes)
        lengths = np.minimum(self.page_bytes, len(data) - starts)
        sums = checksums(Content(data.ctypes.data + starts, lengths, data))
        entries = np.stack([sums, lengths], axis=1).astype("<u4")
        path = self._path(key)

        def write() -> None:
            places = (_PAGES, first * self.page_bytes, data), (_SUMS, first * _ENTRY, entries)
            for suffix, at, values in places:
                file = os.open(path + suffix, os.O_WRONLY | os.O_CREAT, 0o644)
                try:
                    os.pwrite(file, values.tobytes(), at)
                finally:
                    os.close(file)

        self._write(write, len(data))

    def _write(self, write: Callable[[], None], n_bytes: int) -> None:
        """Call `write`; do without where it fails, and keep the directory below its limit."""
        if not self._is_writable:
            return
        try:
            write()
        except OSError as error:
            self._is_writable = False
            warnings.warn(
                f"{self._root}: pages of remote archives are not kept any more, since the "
                f"directory cannot be written: {error.strerror or error}; make room, or choose "
                "another cache_dir",
                ScdlWarning,
                stacklevel=2,
            )
        self._unchecked += n_bytes
        if self._unchecked > self._limit // _CHECKS:
            self._unchecked = 0
            self._shrink()

    @staticmethod
    def _replace(path: str, data: bytes) -> str:
        part = f"{path}.{uuid.uuid4().hex[:8]}"
        with open(part, "wb") as file:
            file.write(data)
        os.replace(part, path)
        return path

    def _touch(self, path: str) -> None:
        """Say that a file is in use, once in the life of this object."""
        if path not in self._used:
            self._used.add(path)
            os.utime(path + _PAGES)

    def _shrink(self) -> None:
        """Remove the files used longest ago while all have more than the limit."""
        found, now = [], time.time()
        for directory, _, names in os.walk(self._root):
            for name in names:
                with contextlib.suppress(OSError):
                    stat = os.stat(path := os.path.join(directory, name))
                    is_part = not name.endswith((_PAGES, _SUMS, _TAIL))
                    if is_part and stat.st_mtime > now - _PART_SECONDS:
                        # Another process is about to rename it.
                        continue
                    # Files have holes where no page is.
                    found.append((stat.st_mtime, stat.st_blocks * 512, path))
        total = sum(size for _, size, _ in found)
        if total <= self._limit:
            return
        for _, size, path in sorted(found):
            # Without its entry a page does not count, so entries are removed first.
            for name in (path.removesuffix(_PAGES) + _SUMS, path):
                with contextlib.suppress(OSError):
                    os.unlink(name)
            total -= size
            if total <= self._limit - self._limit // 8:
                break


def _runs(is_end: NDArray[np.bool_]) -> Iterator[tuple[int, int]]:
    """Bounds of runs of items, given for each item but the last whether a run ends with it."""
    bounds = np.concatenate([[0], np.flatnonzero(is_end) + 1, [len(is_end) + 1]])
    return pairwise(bounds.tolist())
