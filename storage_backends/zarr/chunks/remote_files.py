"""Files of a remote store: large requests, many at once, begun before their bytes are needed."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence

import numpy as np
from numpy.typing import NDArray
from zarr.abc.store import RangeByteRequest, Store, SuffixByteRequest
from zarr.core.buffer import default_buffer_prototype
from zarr.core.sync import sync

from storage_backends.directory.content import Content
from storage_backends.errors import COPY_AGAIN, ArchiveFormatError, RefusedError
from storage_backends.zarr.chunks import fetch_queue, spans
from storage_backends.zarr.chunks.files import Pieces
from storage_backends.zarr.chunks.page_cache import PageCache
from storage_backends.zarr.chunks.spans import FILE_NUMBERS, PAGE_BITS, RemoteFile, Span

#: Files are read in pages, which begin at multiples of this many bytes; of the second number if
#: pages are kept in a local directory, as each is then fetched only once.
PAGE_BYTES, CACHED_PAGE_BYTES = 1 << 12, 1 << 14

#: Bytes of a piece of which it is not doubted that the file has them.
_PLAUSIBLE = 1 << 26

_free = asyncio.Semaphore(fetch_queue.CONCURRENCY)


class RemoteFiles:
    """Files of a remote store.

    Attributes
    ----------
    page_bytes
        Bytes of a page.
    cache
        Keeps pages in a local directory, if there is one.

    Parameters
    ----------
    read
        Reads a range of a file, called by many threads at once; by default, `store` reads it.
    """

    request_bytes = 1 << 18

    def __init__(
        self,
        store: Store,
        url: str,
        cache: PageCache | None = None,
        read: Callable[[str, int, int], NDArray[np.uint8]] | None = None,
    ) -> None:
        self.store, self.url, self.cache = store, url, cache
        self.page_bytes = PAGE_BYTES if cache is None else cache.page_bytes
        self._read = read
        self._first_pages: dict[str, int] = {}

    def file(self, key: str) -> RemoteFile:
        """A file, with the number of its first page."""
        first = self._first_pages.get(key)
        if first is None:
            first = self._first_pages.setdefault(key, next(FILE_NUMBERS) << PAGE_BITS)
        return RemoteFile(self, key, first)

    def read(self, key: str, start: int, stop: int) -> NDArray[np.uint8]:
        """Bytes ``[start, stop)`` of a file, fewer at its end; waits for them."""
        if self._read is not None:
            return self._read(key, start, stop)
        request = RangeByteRequest(start, stop)
        found = sync(self.store.get(key, default_buffer_prototype(), request))
        return np.frombuffer(b"" if found is None else found.to_bytes(), np.uint8)

    def size(self, key: str) -> int | None:
        """Bytes of a file; None where there is none."""
        try:
            return int(sync(self.store.getsize(key)))
        except FileNotFoundError:
            return None

    def tail(self, key: str, length: int) -> bytes | None:
        """The last `length` bytes of a file, fewer if it is shorter; None where there is none."""
        return self.tails([(self, key, length)])[0]

    @staticmethod
    def tails(wanted: Sequence[tuple[RemoteFiles, str, int]]) -> list[bytes | None]:
        """The last bytes of several files, fetched at once."""

        async def get(owner: RemoteFiles, key: str, length: int) -> bytes | None:
            cached = None if owner.cache is None else owner.cache.tail(key, length)
            if cached is not None:
                return cached
            async with _free:
                request = SuffixByteRequest(length)
                found = await owner.store.get(key, default_buffer_prototype(), request)
            data = None if found is None else found.to_bytes()
            if owner.cache is not None and data is not None and len(data) == length:
                owner.cache.write_tail(key, data)
            return data

        async def get_all() -> list[bytes | None]:
            return await asyncio.gather(*(get(*one) for one in wanted))

        return list(sync(get_all()))

    @staticmethod
    def will_need(pieces: Pieces) -> list[Span]:
        """Begin to fetch pieces; they stay in memory as long as the returned object."""
        return spans.begin(*_pages(pieces)).spans

    @staticmethod
    def fetch(pieces: Pieces) -> Content:
        """The bytes of pieces; those that were not announced are fetched now."""
        files, first, last = _pages(pieces)
        found = spans.begin(files, first, last)
        places = [span.place or span.wait() for span in found.spans]
        at, _ = found.find(first)
        address, start, stop = np.array(places, np.int64).reshape(-1, 3)[at].T
        addresses, joined = address + pieces.offset - start, []
        for i in np.flatnonzero(pieces.offset + pieces.length > stop).tolist():
            # The piece continues in other spans, or the file ends before it does.
            joined.append(_joined(found.spans[at[i] :], pieces, i))
            addresses[i] = joined[-1].ctypes.data
        return Content(addresses, pieces.length, (found.spans, joined))

    def total(self, prefix: str) -> int:
        """Bytes of all files below a path; 0 where the store does not list them."""
        if not self.store.supports_listing:
            return 0
        try:
            return int(sync(self.store.getsize_prefix(prefix)))
        except RefusedError:
            return 0

    def close(self) -> None:
        """Do nothing: no resources are held."""


def _joined(following: Sequence[Span], pieces: Pieces, i: int) -> NDArray[np.uint8]:
    """The bytes of a piece that several spans hold together, of which the first begins it."""
    owner, key = pieces.files[pieces.file[i]]
    parts, at, stop = [], int(pieces.offset[i]), int(pieces.offset[i] + pieces.length[i])
    for span in following:
        if at == stop or span.key != key or span.source is not owner or span.start > at:
            break
        parts.append(span.part(at, stop))
        at += len(parts[-1])
    if not parts or at < stop:
        raise _truncated(owner, key)
    return np.concatenate(parts)


def _truncated(owner: RemoteFiles, key: str) -> ArchiveFormatError:
    return ArchiveFormatError(f"{owner.url}: the file {key} is truncated or missing; {COPY_AGAIN}")


def _check_plausible(pieces: Pieces) -> None:
    """Raise ArchiveFormatError if files do not have long or distant pieces that an index claims."""
    most = PAGE_BYTES << PAGE_BITS
    is_doubtful = (pieces.length > _PLAUSIBLE) | (pieces.offset > most - _PLAUSIBLE)
    for i in np.flatnonzero(is_doubtful).tolist():
        owner, key = pieces.files[pieces.file[i]]
        stop = int(pieces.offset[i]) + int(pieces.length[i])
        if stop > most or not len(owner.read(key, stop - 1, stop)):
            raise _truncated(owner, key)


def _pages(
    pieces: Pieces,
) -> tuple[dict[int, RemoteFile], NDArray[np.int64], NDArray[np.int64]]:
    """The files of pieces by their numbers, and first and last page of each piece."""
    _check_plausible(pieces)
    files = [owner.file(key) for owner, key in pieces.files]
    pairs = [(file.source.page_bytes, file.first_page) for file in files]
    page_bytes, base = np.array(pairs, np.int64).reshape(-1, 2)[pieces.file].T
    ends = pieces.offset + np.maximum(pieces.length, 1) - 1
    by_number = {file.first_page >> PAGE_BITS: file for file in files}
    return by_number, base + pieces.offset // page_bytes, base + ends // page_bytes
