"""Fetching the encoded chunks of one or several arrays, and decoding them."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Hashable, Iterator, Sequence
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from storage_backends.compute.traffic import TRAFFIC
from storage_backends.directory.content import Content
from storage_backends.errors import COPY_AGAIN, ArchiveFormatError, MissingCodecError
from storage_backends.zarr.chunks.files import Pieces
from storage_backends.zarr.chunks.shards import ShardedChunks, indexes, look_up, split
from storage_backends.zarr.codecs.chain import Chain
from storage_backends.zarr.codecs.chunk_errors import DamagedChunkError
from storage_backends.zarr.plan import Bound, ChunkPieces


class Chunks(ABC):
    """Chunks being read; any thread may decode them."""

    @abstractmethod
    def decode(self, start: int, stop: int, needed: NDArray[np.int64], out: NDArray[Any]) -> None:
        """Decode chunks ``[start, stop)`` into the rows of `out`.

        Of each chunk its item of `needed` says how many numbers the caller will use.
        """


class ChunkReader(ABC):
    """Gives the chunks of one array, or together those of several arrays.

    Attributes
    ----------
    where
        Opens the message of an error.
    dtype
        Type of the decoded numbers, which may be narrower than the array's.
    kind
        Readers of one kind can read together.
    framed
        This reader if pieces of its chunks can be decoded, or None: chunks have to be decoded up to
        the last piece.
    """

    where: str
    dtype: np.dtype[Any]
    kind: Hashable

    @property
    def framed(self) -> DirectReader | None:
        return None

    @staticmethod
    @abstractmethod
    def fetch(
        readers: Sequence[Any], which: NDArray[np.int64], chunks: NDArray[np.int64]
    ) -> Chunks:
        """Begin to read chunks of readers of one kind.

        Parameters
        ----------
        which, chunks
            The reader of each chunk, and its number there, in ascending order for each reader.
        """

    @staticmethod
    @abstractmethod
    def will_need(
        readers: Sequence[Any], which: NDArray[np.int64], chunks: NDArray[np.int64]
    ) -> Any:
        """Announce chunks, as for `fetch`; returns an object to keep until they were read."""


class Located(Protocol):
    """What has chunks in a grid.

    Attributes
    ----------
    where
        Opens the message of an error.
    grid
        The chunks.
    """

    where: str
    grid: ShardedChunks


class DirectReader(ChunkReader):
    """Reads files and decodes chunks without zarr-python."""

    def __init__(self, where: str, grid: ShardedChunks, chain: Chain, fill: Any) -> None:
        self.where, self.grid, self.chain, self.fill = where, grid, chain, fill
        self.dtype = chain.stored
        # Chunks of some archives may be absent, so that these are decoded in another way.
        self.kind = type(grid.files), chain, np.asarray(fill).tobytes(), grid.complete

    @property
    def framed(self) -> DirectReader | None:
        return self if self.chain.in_frames and self.grid.complete else None

    @staticmethod
    def fetch(
        readers: Sequence[DirectReader], which: NDArray[np.int64], chunks: NDArray[np.int64]
    ) -> _Fetched:
        pieces, written = locate(readers, which, chunks)
        TRAFFIC.ask(int(pieces.length.sum()))
        return _Fetched(readers, which, chunks, written, readers[0].grid.files.fetch(pieces))

    @staticmethod
    def will_need(
        readers: Sequence[DirectReader], which: NDArray[np.int64], chunks: NDArray[np.int64]
    ) -> Any:
        pieces, _ = locate(readers, which, chunks)
        return readers[0].grid.files.will_need(pieces)


def encoded(reader: DirectReader, start: int, stop: int) -> Iterator[bytes]:
    """The encoded chunks ``[start, stop)`` of an array, read file by file."""
    per_file, which = reader.grid.per_file, np.zeros(1, np.int64)
    while start < stop:
        last = min(stop, start - start % per_file + per_file)
        chunks = np.arange(start, last)
        pieces, _ = locate([reader], np.repeat(which, len(chunks)), chunks)
        yield from reader.grid.files.fetch(pieces).copies()
        start = last


def decoded(reader: DirectReader, n: int, length: int) -> Iterator[NDArray[Any]]:
    """The first `n` chunks of an array of one dimension, each of `length` items."""
    for number in range(n):
        chunk = np.empty((1, length), reader.chain.stored)
        fetched = reader.fetch([reader], np.array([0]), np.array([number]))
        fetched.decode(0, 1, np.array([length]), chunk)
        yield chunk[0]


def locate(
    readers: Sequence[Located], which: NDArray[np.int64], chunks: NDArray[np.int64]
) -> tuple[Pieces, NDArray[np.bool_]]:
    """Locate chunks, ascending for each reader, and tell which of them were written."""
    per_file = np.array([reader.grid.per_file for reader in readers])
    file, begun = np.empty_like(chunks), np.empty((2, len(chunks)), np.int64)
    n_files = split(which, chunks, per_file, file, begun)
    of_file = [(readers[i].grid, n) for i, n in begun[:, :n_files].T.tolist()]
    index = indexes(of_file)
    offset, length = np.empty_like(chunks), np.empty_like(chunks)
    addresses = np.array([entries.ctypes.data for entries in index], np.int64)
    n_absent, bad = look_up(addresses, file, chunks % per_file[which], offset, length)
    if bad >= 0:
        where = readers[which[bad]].where
        raise ArchiveFormatError(f"{where}: the index of a shard is damaged; {COPY_AGAIN}")
    written = np.ones(len(chunks), bool) if not n_absent else length >= 0
    for i in np.flatnonzero(~written).tolist() if n_absent else ():
        if readers[which[i]].grid.complete:
            raise ArchiveFormatError(
                f"{readers[which[i]].where}: chunk {chunks[i]} is missing; {COPY_AGAIN}"
            )
    if n_absent:
        file, offset, length = file[written], offset[written], length[written]
    return Pieces([(grid.files, grid.key(n)) for grid, n in of_file], file, offset, length), written


class _Fetched(Chunks):
    """Chunks whose encoded bytes are in memory."""

    def __init__(
        self,
        readers: Sequence[DirectReader],
        which: NDArray[np.int64],
        chunks: NDArray[np.int64],
        written: NDArray[np.bool_],
        content: Content,
    ) -> None:
        self._readers, self._which, self._chunks = readers, which, chunks
        self._content = content
        # Chunks with only fill values may be absent.
        self._written = None if written.all() else written

    def decode(self, start: int, stop: int, needed: NDArray[np.int64], out: NDArray[Any]) -> None:
        first = start
        while first < stop:
            last = self._end_of_tables(first, stop)
            part = slice(first - start, last - start)
            self._decode(first, last, needed[part], out[part])
            first = last

    def _end_of_tables(self, start: int, stop: int) -> int:
        """End of the chunks from `start` on whose arrays have the same tables."""
        if self._readers[0].chain.fitted is None or len(self._readers) == 1:
            return stop
        tables = [self._readers[which].chain.fitted for which in self._which[start:stop]]
        return start + next(
            (k for k, other in enumerate(tables) if other != tables[0]), len(tables)
        )

    def _decode(self, start: int, stop: int, needed: NDArray[np.int64], out: NDArray[Any]) -> None:
        decode, first = self._readers[self._which[start]].chain.decode, start
        try:
            if self._written is None:
                decode(self._content.part(start, stop), needed, out)
                return
            out[:] = self._readers[0].fill
            first, last = int(self._written[:start].sum()), int(self._written[:stop].sum())
            if first < last:
                written = self._written[start:stop]
                decoded = np.empty((last - first, *out.shape[1:]), out.dtype)
                decode(self._content.part(first, last), needed[written], decoded)
                out[written] = decoded
        except MissingCodecError as error:
            where = self._readers[self._which[start]].where
            raise MissingCodecError(f"{where}: {error}") from error
        except DamagedChunkError as error:
            raise self._damage(error, first) from error

    def content(self) -> Content:
        """The encoded bytes."""
        return self._content

    def place(
        self,
        start: int,
        stop: int,
        pieces: ChunkPieces,
        n_items: int,
        bound: Bound,
        out: NDArray[Any],
    ) -> int:
        """Decode pieces of chunks ``[start, stop)`` in frames, of `n_items` each.

        Returns the position of the first chunk with a number out of bounds, or -1.
        """
        try:
            content = self._content.part(start, stop)
            return self._readers[0].chain.place(content, pieces, n_items, bound, out)
        except DamagedChunkError as error:
            raise self._damage(error, start) from error

    def _damage(self, error: DamagedChunkError, first: int) -> ArchiveFormatError:
        """The error, with the number of the chunk in its array."""
        at = first + error.position
        if self._written is not None:
            at = int(np.flatnonzero(self._written)[at])
        where = self._readers[self._which[at]].where
        return error.at(f"{where}: chunk {self._chunks[at]}")
