"""Read-only access to a Zarr store in one zip file.

Members stored without compression, as zarr's ``ZipStore`` and ``zip -0`` write them, are read in
place. Compressed members are decompressed into memory as a whole.

Source: APPNOTE.TXT of PKWARE, 4.3 and 4.4.
"""

from __future__ import annotations

import os
import zipfile
import zlib
from collections.abc import Iterator, Mapping, Sequence
from functools import partial
from typing import NamedTuple

import numpy as np
import zarr
from numpy.typing import NDArray
from zarr.core.buffer import Buffer, default_buffer_prototype
from zarr.storage import MemoryStore

from storage_backends.capabilities import Examination, Finding, Piece
from storage_backends.compute.caching import LRUCache
from storage_backends.directory.content import Content
from storage_backends.directory.mapped_file import MappedFile
from storage_backends.errors import COPY_AGAIN, ArchiveFormatError, one_line
from storage_backends.zarr.chunks.files import Pieces
from storage_backends.zarr.claims import bounded
from storage_backends.zarr.detection import METADATA_FILES, zipped_root

#: Maximum size of the cache of decompressed members, in bytes.
_UNPACKED_BYTES = 128 << 20
#: Size of a local file header without its variable fields, and the position of their lengths.
_HEADER_BYTES = 30
_LENGTHS = slice(26, 30)
#: Maximum bytes that one byte of DEFLATE expands to.
_MOST_PER_BYTE = 1032
_ENCRYPTED = 1


class _Member(NamedTuple):
    """A member of a zip file: its stored bytes, compression, original size and CRC-32."""

    header: int
    length: int
    method: int
    size: int
    crc: int


class ZippedFiles:
    """Files of a store in a zip file, read as if they were in a directory.

    Parameters
    ----------
    path
        The zip file.

    Raises
    ------
    ArchiveFormatError
        It is truncated or damaged, or has no Zarr store.
    """

    request_bytes = 0

    def __init__(self, path: str) -> None:
        self.path = path
        self._file = MappedFile(path)
        self._unpacked = LRUCache[str, NDArray[np.uint8]](_UNPACKED_BYTES, lambda data: data.nbytes)
        try:
            with zipfile.ZipFile(path) as archive:
                found = archive.infolist()
        except (zipfile.BadZipFile, OSError, ValueError, NotImplementedError) as error:
            raise ArchiveFormatError(
                f"{path}: the zip file is truncated or damaged ({one_line(error)}); copy it again"
            ) from error
        root = zipped_root(info.filename for info in found)
        if root is None:
            raise ArchiveFormatError(
                f"{path}: expected a Zarr store in the zip file, found no {METADATA_FILES[0]} or "
                f"{METADATA_FILES[1]}; unpack it, and convert its content"
            )
        self._members: dict[str, _Member] = {}
        for info in found:
            if info.is_dir() or not info.filename.startswith(root):
                continue
            if info.flag_bits & _ENCRYPTED:
                raise ArchiveFormatError(f"{path}: the zip file is encrypted; unpack it first")
            self._members[info.filename.removeprefix(root)] = _Member(
                info.header_offset, info.compress_size, info.compress_type, info.file_size, info.CRC
            )

    def group(self) -> zarr.Group:
        """The root of the store."""
        store = MemoryStore(_Buffers(self), read_only=True)  # type: ignore[arg-type]
        is_new = METADATA_FILES[0] in self._members
        return zarr.open_group(store, mode="r", zarr_format=3 if is_new else 2)

    def __iter__(self) -> Iterator[str]:
        return iter(self._members)

    def __len__(self) -> int:
        return len(self._members)

    def read(self, key: str) -> NDArray[np.uint8] | None:
        """The bytes of a file; None if it does not exist.

        Raises
        ------
        ArchiveFormatError
            The file is damaged, or its compression method is not supported.
        """
        member = self._members.get(key)
        if member is None:
            return None
        if member.method == zipfile.ZIP_STORED:
            return self._stored(key, member)
        unpacked = self._unpacked.get(key)
        if unpacked is None:
            unpacked = self._unpacked.setdefault(key, self._unpack(key, member))
        return unpacked

    def _stored(self, key: str, member: _Member) -> NDArray[np.uint8]:
        """The bytes of a file as stored in the zip file."""
        data = self._file.data
        lengths = data[member.header :][_LENGTHS].tobytes()
        start = member.header + _HEADER_BYTES + sum(np.frombuffer(lengths, "<u2").tolist())
        if len(lengths) < 4 or start + member.length > len(data):
            raise self._damaged(key)
        return data[start : start + member.length]

    def _unpack(self, key: str, member: _Member) -> NDArray[np.uint8]:
        if member.method != zipfile.ZIP_DEFLATED:
            raise ArchiveFormatError(
                f"{self.path}: {key} is compressed by a method ({member.method}) other than "
                "DEFLATE; unpack the zip file first"
            )
        if member.size > _MOST_PER_BYTE * (member.length + 1):
            raise self._damaged(key)
        try:
            decoder = zlib.decompressobj(-zlib.MAX_WBITS)
            unpacked = decoder.decompress(self._stored(key, member).data, member.size + 1)
        except zlib.error as error:
            raise self._damaged(key) from error
        if len(unpacked) != member.size:
            raise self._damaged(key)
        return np.frombuffer(unpacked, np.uint8)

    def _damaged(self, key: str) -> ArchiveFormatError:
        return ArchiveFormatError(f"{self.path}: {key} is damaged in the zip file; {COPY_AGAIN}")

    def size(self, key: str) -> int | None:
        """Size of a file in bytes; None if it does not exist."""
        member = self._members.get(key)
        return None if member is None else member.size

    def tail(self, key: str, length: int) -> bytes | None:
        """The last `length` bytes of a file, fewer if it is shorter; None if it does not exist."""
        data = self.read(key)
        return None if data is None else data[-length:].tobytes()

    @staticmethod
    def tails(wanted: Sequence[tuple[ZippedFiles, str, int]]) -> list[bytes | None]:
        """The last bytes of several files."""
        return [owner.tail(key, length) for owner, key, length in wanted]

    @staticmethod
    def fetch(pieces: Pieces) -> Content:
        """The bytes of pieces; ArchiveFormatError if a file ends before a piece does."""
        files = [owner.read(key) for owner, key in pieces.files]
        lengths = [0 if file is None else len(file) for file in files]
        sizes = np.array(lengths, np.int64)[pieces.file]
        beyond = (pieces.offset > sizes) | (pieces.length > sizes - pieces.offset)
        if beyond.any():
            owner, key = pieces.files[pieces.file[beyond.argmax()]]
            raise owner._damaged(key)
        addresses = [0 if file is None else file.ctypes.data for file in files]
        starts = np.array(addresses, np.int64)
        return Content(starts[pieces.file] + pieces.offset, pieces.length, files)

    @staticmethod
    def will_need(pieces: Pieces) -> bool:
        """Do nothing: the system reads ahead, or unpacking needs the whole file."""
        return False

    def total(self, prefix: str) -> int:
        """Size in the zip file of all files below the path `prefix`, in bytes."""
        below = f"{prefix}/" if prefix else ""
        return sum(m.length for key, m in self._members.items() if key.startswith(below))

    def close(self) -> None:
        """Release memory; the zip file is unmapped once no reader refers to it."""
        self._unpacked.clear()

    def pieces(self) -> Iterator[Piece]:
        """Every file, with a comparison with its CRC-32 in the zip file."""
        for key, member in self._members.items():
            yield Piece(member.size, partial(self._compare, key, member.crc))

    def _compare(self, key: str, crc: int) -> Finding | None:
        try:
            data = self.read(key)
        except ArchiveFormatError as error:
            return Finding(str(error))
        if data is not None and zlib.crc32(data.data) == crc:
            return None
        return Finding(f"{self.path}: {key} does not match its CRC-32; {COPY_AGAIN}")


class _Buffers(Mapping[str, Buffer]):
    """The files as a mapping of zarr buffers, read on access."""

    def __init__(self, files: ZippedFiles) -> None:
        self._files = files

    def __getitem__(self, key: str) -> Buffer:
        data = self._files.read(key)
        if data is None:
            raise KeyError(key)
        buffer = default_buffer_prototype().buffer.from_array_like(data)
        found = bounded(f"{self._files.path}: {key}", buffer)
        assert found is not None
        return found

    def __contains__(self, key: object) -> bool:
        return isinstance(key, str) and self._files.size(key) is not None

    def __iter__(self) -> Iterator[str]:
        return iter(self._files)

    def __len__(self) -> int:
        return len(self._files)


def examine(path: str) -> Examination:
    """Examine every file of a zip file by its CRC-32."""
    path = os.path.realpath(path)
    try:
        files = ZippedFiles(path)
    except ArchiveFormatError as error:
        return Examination([Finding(str(error))])
    nbytes = sum(piece.nbytes for piece in files.pieces())
    return Examination(pieces=files.pieces(), nbytes=nbytes, has_checksums=True)
