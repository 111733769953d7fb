"""Spans of remote files, which are found again as long as they are kept."""

from __future__ import annotations

import itertools
import threading
import weakref
from collections.abc import Iterator, Mapping, Sequence
from typing import Generic, NamedTuple, Protocol, TypeVar

import numpy as np
from numpy.typing import NDArray

from storage_backends.zarr.chunks import fetch_queue
from storage_backends.zarr.chunks.page_cache import PageCache

#: Maximum bytes between pages of one request, and maximum bytes of a request.
GAP_BYTES = 1 << 16
REQUEST_BYTES = 1 << 20

#: Pages of all files have different numbers: that of the file, above as many bits of that in it.
PAGE_BITS = 40
FILE_NUMBERS = itertools.count()

_T = TypeVar("_T")
_NONE = np.empty(0, np.uint8)


class Source(Protocol):
    """A reader of remote files.

    Attributes
    ----------
    page_bytes
        Bytes of a page.
    cache
        Keeps pages in a local directory, if there is one.
    """

    page_bytes: int
    cache: PageCache | None

    def read(self, key: str, start: int, stop: int) -> NDArray[np.uint8]:
        """Bytes ``[start, stop)`` of a file, fewer at its end."""


class RemoteFile(NamedTuple):
    """A file, and the number of its first page."""

    source: Source
    key: str
    first_page: int


class Span:
    """Consecutive pages of a file, in memory or on their way.

    Nothing else refers to a span for long, so its memory is released, and a request that has not
    begun is left out, when those who asked for it drop it.
    """

    __slots__ = ("__weakref__", "_data", "_done", "_error", "key", "place", "reference", "source",
                 "start", "stop")  # fmt: skip

    def __init__(self, file: RemoteFile, first: int, last: int) -> None:
        self.source, self.key, base = file
        self.start = (first - base) * self.source.page_bytes
        self.stop = (last + 1 - base) * self.source.page_bytes
        self.reference = weakref.ref(self)
        #: Address of the first byte, and the range of the file, which may end before `stop`; None
        #: until the bytes are here.
        self.place: tuple[int, int, int] | None = None
        self._data = _NONE
        self._error: BaseException | None = None
        # Locked until the bytes are here; a Future would take several times as long.
        self._done = threading.Lock()
        self._done.acquire()

    def wait(self) -> tuple[int, int, int]:
        """The `place`, as soon as the bytes are here; raises the error of fetching them."""
        with self._done:
            if self._error is not None:
                raise self._error
            assert self.place is not None
            return self.place

    def part(self, start: int, stop: int) -> NDArray[np.uint8]:
        """Bytes of a range of the file, as far as the span has them."""
        self.wait()
        return self._data[max(start - self.start, 0) : max(stop - self.start, 0)]

    def end(self, found: NDArray[np.uint8] | BaseException) -> None:
        """Give what was fetched, or why it was not, to those who wait."""
        if isinstance(found, BaseException):
            self._error = found
        else:
            self._data = found
            self.place = found.ctypes.data, self.start, self.start + len(found)
        self._done.release()

    def fetch(self) -> None:
        """Fetch the bytes; errors are raised where these are needed."""
        source, key = self.source, self.key
        try:
            data = source.read(key, self.start, self.stop)
        except BaseException as error:  # noqa: BLE001 - raised by `wait`
            self.end(error)
            return
        self.end(data)
        if source.cache is not None:
            source.cache.write(key, self.start // source.page_bytes, data)


class Spans(NamedTuple, Generic[_T]):
    """Spans in the order of their first pages.

    If a span holds a page, it is the last one that does not begin after the page.

    Attributes
    ----------
    first, last
        First and last page of each.
    spans
        The spans, or references to them.
    """

    first: NDArray[np.int64]
    last: NDArray[np.int64]
    spans: list[_T]

    @classmethod
    def joined(cls, parts: Sequence[Spans[_T]]) -> Spans[_T]:
        """The spans of several parts."""
        first = np.concatenate([part.first for part in parts])
        last = np.concatenate([part.last for part in parts])
        spans = list(itertools.chain.from_iterable(part.spans for part in parts))
        order = np.argsort(first, kind="stable")
        return cls(first[order], last[order], [spans[i] for i in order.tolist()])

    def take(self, chosen: NDArray[np.int64]) -> Spans[_T]:
        """Those at some positions."""
        return Spans(
            self.first[chosen], self.last[chosen], [self.spans[i] for i in chosen.tolist()]
        )

    def find(self, pages: NDArray[np.int64]) -> tuple[NDArray[np.int64], NDArray[np.bool_]]:
        """Position of the last span that does not begin after each page, and if it holds it."""
        at = np.searchsorted(self.first, pages, side="right") - 1
        if not len(self.first):
            return at, np.zeros(len(pages), np.bool_)
        return at, (at >= 0) & (pages <= self.last[at])

    def end_after(self, at: NDArray[np.int64], pages: NDArray[np.int64]) -> NDArray[np.bool_]:
        """Whether the spans at positions hold all pages up to others."""
        return self.last[at] >= pages if len(self.last) else np.zeros(len(at), np.bool_)


#: All spans, of which some may have been dropped. Threads replace it without a lock: if two do so
#: at once, others do not find the spans of one, and fetch them again.
_known = Spans(np.empty(0, np.int64), np.empty(0, np.int64), list[weakref.ref[Span]]())


def begin(
    files: Mapping[int, RemoteFile], first: NDArray[np.int64], last: NDArray[np.int64]
) -> Spans[Span]:
    """The spans that hold ranges of pages; those that nobody keeps begin to be fetched.

    Parameters
    ----------
    files
        The files of the pages by their numbers.
    first, last
        First and last page of each range.
    """
    known = _known
    at, kept, is_kept = _held(known, first)
    is_whole = is_kept & known.end_after(at, last)
    if is_whole.all():
        return kept
    # Of ranges within a span the first page tells which one it is.
    others = _expanded(first[~is_whole], last[~is_whole])
    pages = _distinct(np.concatenate([first[is_whole], others]))
    at, kept, is_kept = _held(known, pages)
    if is_kept.all():
        return kept
    missing, at = pages[~is_kept], at[~is_kept]
    ready = Spans.joined([kept.take(at[:0]), *_cached(files, missing)])
    at_ready, is_ready = ready.find(missing)
    new = _requests(files, missing[~is_ready], (at + at_ready)[~is_ready])
    _know(Spans.joined([ready, new]))
    fetch_queue.start(new.spans)
    return Spans.joined([kept, ready, new])


def _held(
    known: Spans[weakref.ref[Span]], pages: NDArray[np.int64]
) -> tuple[NDArray[np.int64], Spans[Span], NDArray[np.bool_]]:
    """As :meth:`Spans.find`, of spans that someone keeps, and these spans."""
    at, is_held = known.find(pages)
    near = _distinct(at[is_held])
    kept, is_kept = _kept(known.take(near))
    is_held[is_held] = is_kept[np.searchsorted(near, at[is_held])]
    return at, kept, is_held


def _expanded(first: NDArray[np.int64], last: NDArray[np.int64]) -> NDArray[np.int64]:
    """All pages of ranges."""
    n = last - first + 1
    pages: NDArray[np.int64] = np.repeat(first - np.cumsum(n) + n, n) + np.arange(n.sum())
    return pages


def _distinct(numbers: NDArray[np.int64]) -> NDArray[np.int64]:
    """Numbers in ascending order, each once; they are not negative."""
    # np.unique, which hashes, is several times slower for sorted ones.
    ordered = np.sort(numbers)
    distinct: NDArray[np.int64] = ordered[np.diff(ordered, prepend=-1) != 0]
    return distinct


def _kept(spans: Spans[weakref.ref[Span]]) -> tuple[Spans[Span], NDArray[np.bool_]]:
    """Those spans that someone keeps, and which these are."""
    found = [reference() for reference in spans.spans]
    is_kept = np.array([span is not None for span in found], np.bool_)
    kept = list(filter(None, found))
    return Spans(spans.first[is_kept], spans.last[is_kept], kept), is_kept


def _know(new: Spans[Span]) -> None:
    """Let others find spans, and forget those that were dropped."""
    global _known
    first, last, spans = Spans.joined([_kept(_known)[0], new])
    _known = Spans(first, last, [span.reference for span in spans])


def _cached(files: Mapping[int, RemoteFile], pages: NDArray[np.int64]) -> Iterator[Spans[Span]]:
    """Spans of those pages that are in local directories."""
    numbers = pages >> PAGE_BITS
    for number in _distinct(numbers).tolist():
        file = files[number]
        if (cache := file.source.cache) is None:
            continue
        wanted = pages[numbers == number] - file.first_page
        for first, data in cache.read(file.key, wanted.tolist()):
            begin = file.first_page + first
            end = begin + (len(data) - 1) // cache.page_bytes
            span = Span(file, begin, end)
            span.end(data)
            yield Spans(np.array([begin]), np.array([end]), [span])


def _requests(
    files: Mapping[int, RemoteFile], pages: NDArray[np.int64], before: NDArray[np.int64]
) -> Spans[Span]:
    """New spans of pages, one for each request.

    Parameters
    ----------
    before
        Number of the spans that begin before each page: no new span has another one within it.
    """
    numbers = pages >> PAGE_BITS
    sizes = {number: files[number].source.page_bytes for number in _distinct(numbers).tolist()}
    page_bytes = np.array([sizes[number] for number in numbers.tolist()], np.int64)
    apart = np.diff(pages) > GAP_BYTES // page_bytes[1:] + 1
    run = np.concatenate([[0], np.cumsum(apart | (np.diff(before) != 0))])[: len(pages)]
    # Pages from the first one of the run on.
    beyond = pages - pages[np.searchsorted(run, run)]
    part = beyond // np.maximum(1, REQUEST_BYTES // np.maximum(page_bytes, 1))
    ends = np.flatnonzero((np.diff(run) != 0) | (np.diff(part) != 0))
    first = pages[np.concatenate([[0], ends + 1])[: len(pages)]]
    last = pages[np.append(ends, len(pages) - 1)[: len(pages)]]
    pairs = zip(first.tolist(), last.tolist(), strict=True)
    return Spans(first, last, [Span(files[a >> PAGE_BITS], a, b) for a, b in pairs])
