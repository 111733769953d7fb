"""Single codecs of Zarr arrays.

Sources: Zarr v3 specification, core codecs; numcodecs for those called ``numcodecs.*``.
"""

from __future__ import annotations

import ctypes
import gzip
import io
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from typing import Any

import numcodecs
import numpy as np
from numcodecs import blosc
from numpy.typing import NDArray

from storage_backends.directory.content import CHECKSUM_BYTES, Content, checksum
from storage_backends.errors import ArchiveFormatError, MissingCodecError, one_line
from storage_backends.zarr.codecs import ans, packed
from storage_backends.zarr.codecs import blosc as native
from storage_backends.zarr.codecs.chunk_errors import DamagedChunkError
from storage_backends.zarr.codecs.profiles import Codec
from storage_backends.zarr.guards import zstd_size

_SHUFFLES = {"noshuffle": 0, "shuffle": 1, "bitshuffle": 2}
_OTHER_SIZE = "its size is not that of a chunk"


def can_decompress(codecs: Sequence[Codec]) -> bool:
    """Whether all codecs are supported compressors."""
    return all(codec["name"] in COMPRESSORS for codec in codecs)


def decompress(data: bytes, codecs: Sequence[Codec], most: int) -> bytes:
    """Undo compressors, the last one first; ArchiveFormatError beyond `most` bytes."""
    for codec in reversed(codecs):
        data = COMPRESSORS[codec["name"]].decode(data, most)
    return data


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


class PcodecPackage:
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
            # If this fails, decoding the chunks one by one shows which is damaged.
            with suppress(RuntimeError, ValueError):
                cls.decode(joined, out.reshape(-1))
                return
        for position, (file, row) in enumerate(zip(content.copies(), out, strict=True)):
            try:
                cls.decode(file, row)
            except (RuntimeError, ValueError) as error:
                raise DamagedChunkError(position, one_line(error)) from error


def _pcodec_head(start: bytes) -> int | None:
    """Bytes before the first chunk of a pcodec file; None for unknown formats.

    Source: pcodec, standalone format 2: ``pco!``, the version, a count of 7 to 70 bits whose first
    6 bits give its length, and the version of the chunks; then chunks, then a zero byte. Format 3
    adds a byte for a type shared by all chunks, and has longer versions.
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
            "this compression needs the package pcodec: pip install pcodec"
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
        # Blosc trusts the sizes in its header: of the decoded data and of the frame.
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
            # The data may consist of several concatenated members.
            with gzip.GzipFile(fileobj=io.BytesIO(data)) as stream:
                decoded = stream.read(most + 1)
        except EOFError as error:
            raise ArchiveFormatError(_OTHER_SIZE) from error
        if len(decoded) > most:
            raise ArchiveFormatError(_OTHER_SIZE)
        return decoded


#: Codecs from numbers to bytes.
SERIALIZERS: dict[str, Any] = {
    "bytes": _Bytes,
    "numcodecs.pcodec": PcodecPackage,
    packed.NAME: packed.Packed,
    ans.NAME: ans.Ans,
}


#: Codecs from bytes to bytes.
COMPRESSORS: dict[str, Any] = {"blosc": _Blosc, "zstd": _Zstd, "gzip": _Gzip, "crc32c": _Crc32c}
