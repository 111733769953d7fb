"""The codecs ``scdl.same`` and ``scdl.of`` for zarr-python: arrays that repeat another array.

Matrices of the same cells and genes often have the same ids, and values that depend only on the
cell and on the value of the other matrix, such as log-normalised counts. ``docs/format.md``
describes the codecs byte by byte.

zarr-python gives a codec that decodes parts of chunks the store and the path of the chunk, by which
it reads the other array. So no other codec may be around it, nor shards.
"""

from __future__ import annotations

import asyncio
import posixpath
from abc import abstractmethod
from dataclasses import dataclass
from typing import Any, NamedTuple, Self

import numpy as np
from numpy.typing import NDArray
from zarr.abc.codec import ArrayBytesCodec, ArrayBytesCodecPartialDecodeMixin
from zarr.abc.store import RangeByteRequest, SuffixByteRequest
from zarr.api.asynchronous import open_array
from zarr.core.array_spec import ArraySpec
from zarr.core.buffer import Buffer, NDBuffer
from zarr.registry import register_codec
from zarr.storage import StorePath

from storage_backends.directory.content import CHECKSUM_BYTES, Content, checksum
from storage_backends.errors import ArchiveFormatError
from storage_backends.zarr.codecs import row_tables
from storage_backends.zarr.codecs.chunk_errors import DamagedChunkError
from storage_backends.zarr.codecs.profiles import OF, SAME, Codec

_ENTRY_BYTES = 16


class Repetition(NamedTuple):
    """What one of the codecs says of its array.

    Attributes
    ----------
    codec
        Name of the codec.
    array
        Path of the other array, relative to this one.
    chunk_rows
        Items in a piece of a chunk of ``scdl.of``; 0 for ``scdl.same``.
    """

    codec: str
    array: str
    chunk_rows: int = 0

    @classmethod
    def of(cls, codec: Codec) -> Self | None:
        """From metadata of a codec; None if it is another codec; ValueError if it is invalid."""
        name, settings = codec["name"], codec.get("configuration", {})
        if name not in (SAME, OF):
            return None
        expected = {"array", "chunk_shape"} if name == OF else {"array"}
        if settings.keys() != expected or not isinstance(settings["array"], str):
            raise ValueError(f"the codec {name} has {' and '.join(sorted(expected))}: {settings}")
        shape = settings.get("chunk_shape", [0])
        if [*map(type, shape)] != [int] or (name == OF and shape[0] < 1):
            raise ValueError(f"the codec {name} has pieces of one dimension, not {shape}")
        return cls(name, settings["array"], shape[0])

    def target(self, path: str) -> str:
        """Path of the other array, from that of this one; ValueError if it is out of the store."""
        found = posixpath.normpath(posixpath.join(path, self.array))
        if found.startswith(("..", "/")):
            raise ValueError(
                f"the codec {self.codec} names an array out of the store: {self.array}"
            )
        return found

    def to_dict(self) -> dict[str, Any]:
        """The codec as metadata have it."""
        pieces = {"chunk_shape": [self.chunk_rows]} if self.chunk_rows else {}
        return {"name": self.codec, "configuration": {"array": self.array, **pieces}}


@dataclass(frozen=True)
class _RepeatingCodec(ArrayBytesCodec, ArrayBytesCodecPartialDecodeMixin):
    """A codec of an array whose numbers follow from those of another one in the store."""

    is_fixed_size = False

    repeats: Repetition

    @classmethod
    def from_dict(cls, data: dict[str, Any]) -> Self:
        found = Repetition.of(data)
        assert found is not None
        return cls(found)

    def to_dict(self) -> dict[str, Any]:
        return self.repeats.to_dict()

    @abstractmethod
    async def _read(
        self, where: StorePath, other: Any, start: int, stop: int, spec: ArraySpec
    ) -> NDArray[Any]:
        """Items of a chunk, from `start` to `stop` of them."""

    async def _decode_partial_single(
        self, byte_getter: Any, selection: Any, chunk_spec: ArraySpec
    ) -> NDBuffer | None:
        if not isinstance(byte_getter, StorePath):
            raise ValueError(f"the codec {self.repeats.codec} cannot be within shards")
        path = byte_getter.path.rpartition("/c/")[0]
        other = await open_array(
            store=byte_getter.store, path=self.repeats.target(path), mode="r", zarr_format=3
        )
        if isinstance(other.serializer, _RepeatingCodec):
            raise ValueError(f"{path} repeats {other.path}, which repeats another array")
        (chosen,) = selection if isinstance(selection, tuple) else (selection,)
        if isinstance(chosen, slice):
            places = range(*chosen.indices(chunk_spec.shape[0]))
            ends = (places[0], places[-1]) if len(places) else (0, -1)
        else:
            chosen = np.asarray(chosen)
            chosen = np.flatnonzero(chosen) if chosen.dtype == bool else chosen
            ends = (int(chosen.min()), int(chosen.max())) if chosen.size else (0, -1)
        start, stop = min(ends), max(ends) + 1
        values = await self._read(byte_getter, other, start, stop, chunk_spec)
        within = slice(None, None, chosen.step) if isinstance(chosen, slice) else chosen - start
        found: Any = np.asarray(values[within])
        return chunk_spec.prototype.nd_buffer.from_ndarray_like(found)

    async def _decode_single(self, chunk_bytes: Buffer, chunk_spec: ArraySpec) -> NDBuffer:
        raise ValueError(f"the codec {self.repeats.codec} needs the store of the array")

    async def _encode_single(self, chunk_array: NDBuffer, chunk_spec: ArraySpec) -> Buffer | None:
        raise ValueError(
            f"an array with the codec {self.repeats.codec} repeats {self.repeats.array} and cannot "
            "be changed; write it as a new array, with another codec"
        )

    def compute_encoded_size(self, input_byte_length: int, _spec: ArraySpec) -> int:
        raise NotImplementedError("the size of encoded chunks depends on the values")


def _number(where: StorePath) -> int:
    """Number of a chunk."""
    return int(where.path.rpartition("/")[2])


async def _items(other: Any, start: int, stop: int) -> NDArray[Any]:
    if stop > other.shape[0]:
        raise ValueError(f"{other.path} has only {other.shape[0]} of {stop} items to repeat")
    return np.asarray(await other.getitem(slice(start, stop)))


class SameCodec(_RepeatingCodec):
    """An array with the numbers of another one, whose only chunk is not stored.

    The other array has the same type, or both have integers.
    """

    def validate(self, *, shape: Any, dtype: Any, chunk_grid: Any) -> None:
        if len(shape) != 1:
            raise ValueError(f"the codec {SAME} is for arrays of one dimension")

    async def _read(
        self, where: StorePath, other: Any, start: int, stop: int, spec: ArraySpec
    ) -> NDArray[Any]:
        dtype, first = spec.dtype.to_native_dtype(), _number(where) * spec.shape[0]
        found = await _items(other, first + start, first + stop)
        values = found.astype(dtype)
        if found.dtype.newbyteorder("=") != dtype.newbyteorder("="):
            is_same = found.dtype.kind in "iu" and dtype.kind in "iu" and (values == found).all()
            if not is_same:
                raise ValueError(f"expected numbers of {dtype} in {other.path}, not {found.dtype}")
        return values


class OfCodec(_RepeatingCodec):
    """An array of which each row has a table, by the numbers of another array.

    A chunk has pieces, each with its tables, and an index of pieces as the codec
    ``sharding_indexed`` has.
    """

    def validate(self, *, shape: Any, dtype: Any, chunk_grid: Any) -> None:
        if len(shape) != 1 or chunk_grid.chunk_shape[0] % self.repeats.chunk_rows:
            raise ValueError(f"the codec {OF} is for chunks of whole pieces of one dimension")

    async def _read(
        self, where: StorePath, other: Any, start: int, stop: int, spec: ArraySpec
    ) -> NDArray[Any]:
        rows, (length,) = self.repeats.chunk_rows, spec.shape
        begin, end = start // rows, -(-stop // rows)
        index = await self._index(where, length // rows, spec)
        offsets, sizes = index[begin:end].astype(np.int64).T
        ends = offsets + sizes
        if (offsets < 0).any() or (sizes < 0).any() or (offsets[1:] != ends[:-1]).any():
            raise ArchiveFormatError(f"the index of {where.path} is damaged")
        if not len(offsets):
            return np.empty(0, spec.dtype.to_native_dtype())
        wanted = RangeByteRequest(int(offsets[0]), int(ends[-1]))
        data = await where.get(spec.prototype, wanted)
        encoded = np.frombuffer(data.to_bytes() if data else b"", np.uint8)
        if len(encoded) != ends[-1] - offsets[0]:
            raise ArchiveFormatError(f"{where.path} is truncated")
        first = _number(where) * length + begin * rows
        last = min(first + (end - begin) * rows, int(other.shape[0]))
        others = await _items(other, first, max(last, first - begin * rows + stop))
        out = np.empty((end - begin, rows), spec.dtype.to_native_dtype().newbyteorder("="))
        content = Content(encoded.ctypes.data + offsets - offsets[0], sizes, encoded)
        try:
            await asyncio.to_thread(decode, content, others, out)
        except DamagedChunkError as error:
            raise error.at(f"piece {begin + error.position} of {where.path}") from error
        return out.reshape(-1)[start - begin * rows : stop - begin * rows]

    async def _index(self, where: StorePath, n: int, spec: ArraySpec) -> NDArray[np.uint64]:
        size = n * _ENTRY_BYTES + CHECKSUM_BYTES
        found = await where.get(spec.prototype, SuffixByteRequest(size))
        tail = b"" if found is None else found.to_bytes()
        data, expected = tail[:-CHECKSUM_BYTES], tail[-CHECKSUM_BYTES:]
        if len(tail) != size or checksum(data) != expected:
            raise ArchiveFormatError(f"{where.path} is missing, or its index is damaged")
        return np.frombuffer(data, "<u8").reshape(-1, 2)


def decode(content: Content, others: NDArray[Any], out: NDArray[Any]) -> None:
    """Decode consecutive pieces to the rows of `out`, of which only the last may be short.

    Raises
    ------
    DamagedChunkError
        A piece is damaged, or a later version wrote it.
    """
    others = np.ascontiguousarray(others, others.dtype.newbyteorder("="))
    whole = np.zeros(out.shape, others.dtype)
    whole.reshape(-1)[: len(others)] = others
    n_items = np.minimum(out.shape[1], len(others) - np.arange(len(out)) * out.shape[1])
    row_tables.decode(content, n_items, n_items, whole, out)


# For processes in which the package is imported without being installed.
register_codec(SAME, SameCodec)
register_codec(OF, OfCodec)
