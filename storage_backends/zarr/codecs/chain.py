"""Codec chains of Zarr arrays, as functions from chunks to bytes and back.

Chunks are encoded and decoded without zarr-python, whose path costs more than decoding.

Sources: Zarr v3 specification, core codecs; numcodecs for those called ``numcodecs.*``.
"""

from __future__ import annotations

import ctypes
import gzip
import io
import zlib
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any, Self

import numcodecs
import numpy as np
from numcodecs import blosc
from numpy.typing import NDArray

from storage_backends.compute.jit import kernel
from storage_backends.directory.content import CHECKSUM_BYTES, Content, checksum
from storage_backends.errors import ArchiveFormatError, MissingCodecError, one_line
from storage_backends.zarr.codecs import blosc as native
from storage_backends.zarr.codecs import pcodec
from storage_backends.zarr.codecs.profiles import NARROW, Codec
from storage_backends.zarr.guards import zstd_size
from storage_backends.zarr.plan import Bound, ChunkPlan

_SHUFFLES = {"noshuffle": 0, "shuffle": 1, "bitshuffle": 2}
_OTHER_SIZE = "it has another size than a chunk"
#: Bytes that a compressor may add to what another one made, besides a share of them.
_SLACK_BYTES = 1 << 16


class DamagedChunkError(ArchiveFormatError):
    """Bytes that do not decode.

    Parameters
    ----------
    position
        Of the chunk among those that were to be decoded.
    problem
        What is wrong with it.
    """

    def __init__(self, position: int, problem: str) -> None:
        super().__init__(problem)
        self.position = position


class Chain:
    """The codecs of an array, as functions from chunks to bytes and back.

    Parameters
    ----------
    dtype
        Type of the array's numbers.
    stored
        Type of the numbers that decoding gives, whose values are those of the array: narrower
        where a filter made them so.
    """

    def __init__(self, dtype: np.dtype[Any], stored: np.dtype[Any], codecs: Sequence[Codec]):
        self.dtype = dtype
        self.stored = stored
        self._delta = any(c["name"] == "numcodecs.delta" for c in codecs)
        self._serializer = next(c for c in codecs if c["name"] in _SERIALIZERS)
        self._compressors = [c for c in codecs if c["name"] in _COMPRESSORS]
        names = [c["name"] for c in (self._serializer, *self._compressors)]
        self._is_blosc = native.AVAILABLE and names == ["bytes", "blosc", "crc32c"]
        self._is_pcodec = native.AVAILABLE and names == ["numcodecs.pcodec", "crc32c"]
        #: Whether compiled code decodes it: the numbers are of the kind that scdl writes.
        self._is_pcodec_of_ours = self._is_pcodec and stored == pcodec.DTYPE and not self._delta

    @classmethod
    def of(cls, codecs: Sequence[Codec], dtype: np.dtype[Any]) -> Self | None:
        """The chain of an array; None where it has codecs, or an order of them, not known here."""
        names = [codec["name"] for codec in codecs]
        kinds = [_kind(name) for name in names]
        if None in kinds or kinds != sorted(kinds, key=str) or kinds.count("b serializer") != 1:
            return None
        stored = dtype
        for codec in codecs:
            settings = codec.get("configuration", {})
            if codec["name"] == "numcodecs.astype":
                stored = np.dtype(settings["encode_dtype"])
                if stored != NARROW or np.dtype(settings["decode_dtype"]) != dtype:
                    return None
            elif codec["name"] == "numcodecs.delta":
                if np.dtype(settings["dtype"]) != stored or settings.get("astype"):
                    return None
            elif codec["name"] == "bytes" and settings.get("endian", "little") != "little":
                return None
        return cls(dtype, stored, codecs)

    def encode(self, values: NDArray[Any]) -> bytes:
        """Compress one chunk of numbers of type `stored`."""
        if self._delta:
            values = np.diff(values, prepend=values.dtype.type(0))
        settings = _settings(self._serializer)
        data: bytes = _SERIALIZERS[self._serializer["name"]].encode(values, settings)
        for codec in self._compressors:
            data = _COMPRESSORS[codec["name"]].encode(data, _settings(codec))
        return data

    def place(
        self,
        content: Content,
        start: int,
        stop: int,
        memory: NDArray[Any],
        plan: ChunkPlan,
        bound: Bound,
        out: NDArray[Any],
    ) -> bool:
        """Decompress chunks ``[start, stop)`` in turn into `memory` and copy pieces to `out`.

        Returns
        -------
        bool
            Whether this could be done, in compiled code; if not, `out` is to be filled otherwise.
        """
        pieces = plan.bounds, plan.sources, plan.targets, plan.lengths
        where = content.addresses, content.lengths, start, stop, memory, *pieces, bound, out
        if self._is_blosc:
            found = native.place_blosc(native.CRC32C, native.BLOSC_DECOMPRESS, self._delta, *where)
        elif self._is_pcodec_of_ours:
            found = pcodec.place(native.CRC32C, *where)
        else:
            return False
        return found == native.SOUND or _raise_damage(found)

    def decode(self, content: Content, out: NDArray[Any]) -> None:
        """Decompress chunks into the rows of `out`, of type `stored` and as long as a chunk."""
        addresses, lengths, _ = content
        if self._is_blosc:
            unsigned = out.view(f"u{out.itemsize}")
            found = native.decode_blosc(
                native.CRC32C,
                native.BLOSC_DECOMPRESS,
                self._delta,
                addresses,
                lengths,
                unsigned,
            )
            if found != native.SOUND:
                _raise_damage(found)
            return
        if self._is_pcodec_of_ours:
            found = pcodec.decode(native.CRC32C, addresses, lengths, out)
            if found == native.SOUND or _raise_damage(found):
                return
        if self._is_pcodec:
            position = native.check(content)
            if position != native.SOUND:
                raise DamagedChunkError(position, "its checksum is wrong")
            sizes = content.lengths - CHECKSUM_BYTES
            _PcodecPackage.decode_together(content._replace(lengths=sizes), out)
        else:
            for position, (data, row) in enumerate(zip(content.copies(), out, strict=True)):
                try:
                    self._decode_one(data, row)
                except (RuntimeError, ValueError, TypeError, OSError, zlib.error) as error:
                    raise DamagedChunkError(position, one_line(error)) from error
        if self._delta:
            undo_delta(out.view(f"u{out.itemsize}"))

    def _decode_one(self, data: bytes, out: NDArray[Any]) -> None:
        most = out.nbytes + out.nbytes // 8 + _SLACK_BYTES
        data = decompress(data, self._compressors, most)
        _SERIALIZERS[self._serializer["name"]].decode(data, out)


def can_decompress(codecs: Sequence[Codec]) -> bool:
    """Whether all codecs are compressors that are known here."""
    return all(codec["name"] in _COMPRESSORS for codec in codecs)


def decompress(data: bytes, codecs: Sequence[Codec], most: int) -> bytes:
    """Undo compressors, the last one first; ArchiveFormatError beyond `most` bytes."""
    for codec in reversed(codecs):
        data = _COMPRESSORS[codec["name"]].decode(data, most)
    return data


def _raise_damage(found: int) -> bool:
    """Raise for a damaged chunk; False where the chunk is one for the package."""
    problem = native.problem_at(found)
    if problem is not None:
        raise DamagedChunkError(*problem)
    return False


@kernel
def undo_delta(values: NDArray[Any]) -> None:
    """Replace differences by their sums within rows, in place; unsigned numbers wrap around."""
    for row in range(len(values)):
        chunk = values[row]
        total = chunk[0]
        for i in range(1, len(chunk)):
            total += chunk[i]
            chunk[i] = total


def undo_delta_numpy(values: NDArray[Any]) -> None:
    """The same as :func:`undo_delta` in NumPy."""
    np.cumsum(values, axis=1, out=values)


def _settings(codec: Codec) -> dict[str, Any]:
    return dict(codec.get("configuration", {}))


def _kind(name: str) -> str | None:
    """Place of a codec in a chain; the places sort by name."""
    if name in ("numcodecs.astype", "numcodecs.delta"):
        # The only order written, and known, is the narrowing before the differences.
        return f"a {name}"
    return "b serializer" if name in _SERIALIZERS else "c" if name in _COMPRESSORS else None


class _Bytes:
    """Core codec ``bytes``, little-endian."""

    @staticmethod
    def encode(values: NDArray[Any], settings: dict[str, Any]) -> bytes:
        return values.tobytes()

    @staticmethod
    def decode(data: bytes, out: NDArray[Any]) -> None:
        if len(data) != out.nbytes:
            raise ArchiveFormatError(_OTHER_SIZE)
        out[:] = np.frombuffer(data, out.dtype)


class _PcodecPackage:
    """``numcodecs.pcodec``; pcodec is imported when it is first used."""

    @staticmethod
    def encode(values: NDArray[Any], settings: dict[str, Any]) -> bytes:
        with _pcodec_installed():
            from numcodecs.pcodec import PCodec
        encoded: bytes = PCodec(**settings).encode(values)
        return encoded

    @staticmethod
    def decode(data: bytes, out: NDArray[Any]) -> None:
        with _pcodec_installed():
            from pcodec import standalone
        if standalone.simple_decompress_into(data, out).n_processed != len(out):
            raise ArchiveFormatError(_OTHER_SIZE)

    @classmethod
    def decode_together(cls, content: Content, out: NDArray[Any]) -> None:
        """Decode several files in one call, as one file of all their chunks."""
        first = ctypes.string_at(int(content.addresses[0]), min(8, int(content.lengths[0])))
        head = _pcodec_head(first) if len(out) > 1 and len(first) == 8 else None
        joined = None if head is None else native.splice(content, head)
        if joined is not None:
            try:
                cls.decode(joined, out.reshape(-1))
            except (RuntimeError, ValueError) as error:
                raise DamagedChunkError(0, one_line(error)) from error
            return
        for position, (file, row) in enumerate(zip(content.copies(), out, strict=True)):
            try:
                cls.decode(file, row)
            except (RuntimeError, ValueError) as error:
                raise DamagedChunkError(position, one_line(error)) from error


def _pcodec_head(start: bytes) -> int | None:
    """Bytes before the first chunk of a pcodec file; None for formats that are not known.

    Source: pcodec, standalone format 2: ``pco!``, its version, a count of 7 to 70 bits of which the
    first 6 say how many, the version of what follows; then chunks, then a zero byte. Format 3 has
    a byte for a type that all chunks share, and longer versions.
    """
    if start.startswith(b"pco!\x02"):
        return 5 + ((start[5] & 63) + 14) // 8 + 1
    if start.startswith(b"pco!\x03\0"):
        return 6 + ((start[6] & 63) + 14) // 8 + 2
    return None


@contextmanager
def _pcodec_installed() -> Iterator[None]:
    try:
        yield
    except ImportError as error:
        raise MissingCodecError(
            "pcodec is not installed, which this compression needs: pip install pcodec"
        ) from error


class _Blosc:
    @staticmethod
    def encode(data: bytes, settings: dict[str, Any]) -> bytes:
        cname, level = settings["cname"].encode(), settings["clevel"]
        values = np.frombuffer(data, f"V{settings['typesize']}")
        shuffle, size = _SHUFFLES[settings["shuffle"]], settings["blocksize"]
        encoded: bytes = blosc.compress(
            values, cname, level, shuffle, size, typesize=settings["typesize"]
        )
        return encoded

    @staticmethod
    def decode(data: bytes, most: int) -> bytes:
        # Blosc believes the sizes in its header: of what comes out, and of the frame.
        sizes = np.frombuffer(data[4:16], "<u4")
        if len(sizes) < 3 or sizes[0] > most or sizes[2] != len(data):
            raise ArchiveFormatError(_OTHER_SIZE)
        decoded: bytes = blosc.decompress(data)
        return decoded


class _Crc32c:
    @staticmethod
    def encode(data: bytes, settings: dict[str, Any]) -> bytes:
        return data + checksum(data)

    @staticmethod
    def decode(data: bytes, most: int) -> bytes:
        content = data[:-CHECKSUM_BYTES]
        if checksum(content) != data[-CHECKSUM_BYTES:]:
            raise ArchiveFormatError("its checksum is wrong")
        return content


class _Zstd:
    @staticmethod
    def encode(data: bytes, settings: dict[str, Any]) -> bytes:
        encoded: bytes = numcodecs.Zstd(**settings).encode(data)
        return encoded

    @staticmethod
    def decode(data: bytes, most: int) -> bytes:
        size = zstd_size(data)
        if size is None:
            import pyarrow as pa

            with pa.CompressedInputStream(pa.BufferReader(data), "zstd") as stream:
                decoded: bytes = stream.read(most + 1)
        else:
            decoded = b"" if size > most else bytes(numcodecs.Zstd().decode(data))
        if (size or len(decoded)) > most:
            raise ArchiveFormatError(_OTHER_SIZE)
        return decoded


class _Gzip:
    @staticmethod
    def encode(data: bytes, settings: dict[str, Any]) -> bytes:
        encoded: bytes = numcodecs.GZip(**settings).encode(data)
        return encoded

    @staticmethod
    def decode(data: bytes, most: int) -> bytes:
        try:
            # It may be of several members, one after the other.
            with gzip.GzipFile(fileobj=io.BytesIO(data)) as stream:
                decoded = stream.read(most + 1)
        except EOFError as error:
            raise ArchiveFormatError(_OTHER_SIZE) from error
        if len(decoded) > most:
            raise ArchiveFormatError(_OTHER_SIZE)
        return decoded


_SERIALIZERS: dict[str, Any] = {"bytes": _Bytes, "numcodecs.pcodec": _PcodecPackage}
_COMPRESSORS: dict[str, Any] = {"blosc": _Blosc, "zstd": _Zstd, "gzip": _Gzip, "crc32c": _Crc32c}
