"""Files of a remote store: large requests, many at once, begun before their bytes are needed."""

from __future__ import annotations

import asyncio
import threading
import weakref
from collections.abc import Iterator, Sequence
from concurrent.futures import Future
from typing import Any

import numpy as np
from numpy.typing import NDArray
from zarr.abc.store import RangeByteRequest, Store, SuffixByteRequest
from zarr.core.buffer import default_buffer_prototype
from zarr.core.sync import sync

from storage_backends.directory.content import Content
from storage_backends.errors import ArchiveFormatError, RefusedError
from storage_backends.zarr.chunks.files import Pieces
from storage_backends.zarr.chunks.page_cache import PageCache

#: Files are read in pages, which begin at multiples of this many bytes; of the second number if
#: pages are kept in a local directory, as each is then fetched only once.
PAGE_BYTES, CACHED_PAGE_BYTES = 1 << 14, 1 << 16
#: Maximum bytes between pages of one request, maximum bytes of a request, and requests at once.
GAP_BYTES = 1 << 16
REQUEST_BYTES = 1 << 20
CONCURRENCY = 128

#: Bits of the number of a page.
_PAGE_BITS = 40

_free = asyncio.Semaphore(CONCURRENCY)


class Span:
    """Consecutive pages of a file, in memory or on their way.

    Nothing else refers to a span for long, so its memory is released, and a request that has not
    begun is left out, when those who asked for it drop it.
    """

    def __init__(self, owner: RemoteFiles, key: str, first: int, last: int) -> None:
        self.owner, self.key, self.pages = owner, key, range(first, last + 1)
        self.start, self.stop = first * owner.page_bytes, (last + 1) * owner.page_bytes
        self.future: Future[NDArray[np.uint8]] = Future()
        self.reference = weakref.ref(self)
        for page in self.pages:
            owner._pages[key, page] = self.reference

    def __del__(self) -> None:
        for page in self.pages:
            if self.owner._pages.get((self.key, page)) is self.reference:
                self.owner._pages.pop((self.key, page), None)

    async def fetch(self) -> None:
        """Fetch the bytes, fewer at the end of the file."""
        request = RangeByteRequest(self.start, self.stop)
        found = await self.owner.store.get(self.key, default_buffer_prototype(), request)
        data = np.frombuffer(b"" if found is None else found.to_bytes(), np.uint8)
        self.future.set_result(data)
        if self.owner.cache is not None:
            await asyncio.to_thread(self.owner.cache.write, self.key, self.pages.start, data)


class RemoteFiles:
    """Files of a remote store.

    Attributes
    ----------
    page_bytes
        Bytes of a page.
    cache
        Keeps pages in a local directory, if there is one.
    """

    request_bytes = 1 << 18

    def __init__(self, store: Store, url: str, cache: PageCache | None = None) -> None:
        self.store, self.url, self.cache = store, url, cache
        self.page_bytes = PAGE_BYTES if cache is None else cache.page_bytes
        #: The span of each page that is in memory or on its way.
        self._pages: dict[tuple[str, int], weakref.ref[Span]] = {}

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
        return list(dict.fromkeys(_begin(pieces)[1]))

    @staticmethod
    def fetch(pieces: Pieces) -> Content:
        """The bytes of pieces; those that were not announced are fetched now."""
        pages, span_of = _begin(pieces)
        spans = {span: i for i, span in enumerate(dict.fromkeys(span_of))}
        owners: list[Any] = [span.future.result() for span in spans]
        places = [
            (d.ctypes.data, s.start, s.start + len(d)) for d, s in zip(owners, spans, strict=True)
        ]
        number = np.array([spans[span] for span in span_of], np.int64)
        first, last = (np.searchsorted(pages, keys) for keys in _page_keys(pieces))
        address, start, stop = np.array(places, np.int64).reshape(-1, 3)[number[first]].T
        addresses = address + pieces.offset - start
        for i in np.flatnonzero(pieces.offset + pieces.length > stop).tolist():
            # The piece continues in other spans, or the file ends before it does.
            data = _joined(span_of[first[i] : last[i] + 1], pieces, i)
            addresses[i] = data.ctypes.data
            owners.append(data)
        return Content(addresses, pieces.length, (owners, list(spans)))

    def span(self, key: str, page: int) -> Span | None:
        """The span of a page, if there is one."""
        reference = self._pages.get((key, page))
        return None if reference is None else reference()

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


def _joined(spans: Sequence[Span], pieces: Pieces, i: int) -> NDArray[np.uint8]:
    """The bytes of a piece that several spans hold together."""
    parts, at, stop = [], int(pieces.offset[i]), int(pieces.offset[i] + pieces.length[i])
    for span in dict.fromkeys(spans):
        parts.append(span.future.result()[at - span.start : stop - span.start])
        at = max(at, min(span.stop, stop))
    data = np.concatenate(parts)
    if len(data) < pieces.length[i]:
        owner, key = pieces.files[pieces.file[i]]
        raise ArchiveFormatError(
            f"{owner.url}: the file {key} is truncated or missing; copy it again"
        )
    return data


def _page_keys(pieces: Pieces) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """First and last page of pieces, as numbers that contain that of the file."""
    _, file, offset, length = pieces
    page_bytes = np.array([owner.page_bytes for owner, _ in pieces.files])[file]
    ends = offset + np.maximum(length, 1) - 1
    return (file << _PAGE_BITS) + offset // page_bytes, (file << _PAGE_BITS) + ends // page_bytes


def _begin(pieces: Pieces) -> tuple[NDArray[np.int64], list[Span]]:
    """Begin to fetch pieces that are not known; their pages in order, and the span of each."""
    first, last = _page_keys(pieces)
    n_pages = last - first + 1
    pages = np.repeat(first - np.cumsum(n_pages) + n_pages, n_pages) + np.arange(n_pages.sum())
    pages = np.unique(pages)
    found: dict[int, Span] = {}
    missing: dict[int, list[int]] = {}
    for page in pages.tolist():
        number, at = page >> _PAGE_BITS, page & (1 << _PAGE_BITS) - 1
        owner, key = pieces.files[number]
        span = owner.span(key, at)
        if span is None:
            missing.setdefault(number, []).append(at)
        else:
            found[page] = span
    new: list[Span] = []
    for number, left in missing.items():
        owner, key = pieces.files[number]
        ready = list(_cached(owner, key, left))
        there = {page for span in ready for page in span.pages}
        fetched = [
            Span(owner, key, *ends)
            for ends in _requests([page for page in left if page not in there], owner.page_bytes)
        ]
        for span in (*ready, *fetched):
            found.update(
                dict.fromkeys(((number << _PAGE_BITS) + page for page in span.pages), span)
            )
        new += fetched
    if new:
        _start(new)
    return pages, [found[page] for page in pages.tolist()]


def _cached(owner: RemoteFiles, key: str, pages: Sequence[int]) -> Iterator[Span]:
    """Spans of those pages that are in the local cache."""
    if owner.cache is None:
        return
    for first, data in owner.cache.read(key, pages):
        span = Span(owner, key, first, first + (len(data) - 1) // owner.page_bytes)
        span.future.set_result(data)
        yield span


def _requests(pages: Sequence[int], page_bytes: int) -> Iterator[tuple[int, int]]:
    """Join sorted pages of a file to requests, each by its first page and its last."""
    gap, most = GAP_BYTES // page_bytes + 1, max(1, REQUEST_BYTES // page_bytes)
    first = last = -1
    for page in pages:
        if first >= 0 and (page - last > gap or page - first >= most):
            yield first, last
            first = page
        first = page if first < 0 else first
        last = page
    if first >= 0:
        yield first, last


def _start(spans: Sequence[Span]) -> None:
    """Begin to fetch spans, without waiting."""
    waiting = [span.reference for span in spans]
    shared = iter(waiting)

    async def work() -> None:
        for reference in shared:
            async with _free:
                span = reference()
                if span is not None:
                    try:
                        await span.fetch()
                    except Exception as error:  # noqa: BLE001 - raised where the bytes are needed
                        # Keeping bytes that were received may fail, too.
                        if not span.future.done():
                            span.future.set_exception(error)

    async def fetch_all() -> None:
        await asyncio.gather(*(work() for _ in waiting[:CONCURRENCY]))

    def run() -> None:
        try:
            sync(fetch_all())
        except BaseException as error:  # noqa: BLE001 - raised where the bytes are needed
            for span in filter(None, (reference() for reference in waiting)):
                if not span.future.done():
                    span.future.set_exception(error)

    threading.Thread(target=run, name="scdl-fetch", daemon=True).start()
