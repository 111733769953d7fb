"""Reading and writing ``header.sch`` of the documented memmap format.

Source: the schema document of BioNeMo-SCDL, format version 0.1.0. All numbers are big-endian::

    char[4] "SCDL", uint8 major, minor, point, uint8 endianness = 1, uint32 backend = 1
    uint32 n, n x array:  string name, uint64 length, uint32 dtype, uint8 has_shape, [shape]
    uint32 n, n x index:  string name, uint64 length, uint32 dtype, uint32 m, m x string path,
                          uint8 has_shape, [shape]

A string is its uint32 length and UTF-8 bytes; a shape is a uint32 count and as many uint32.
"""

from __future__ import annotations

import struct
from dataclasses import dataclass
from typing import Any

import numpy as np

from storage_backends.errors import ArchiveFormatError, newer_format

MAGIC = b"SCDL"
VERSION = (0, 1, 0)
_BIG_ENDIAN = 1
_MEMMAP = 1

_NUMBERS = ("u1", "u2", "u4", "u8", "f2", "f4", "f8")
_STRING, _FIXED_STRING = 8, 9
_CODES = {np.dtype(name): code for code, name in enumerate(_NUMBERS, start=1)}
_DTYPES = {code: dtype for dtype, code in _CODES.items()}


@dataclass(frozen=True)
class HeaderArray:
    """An array in the header: name, number of elements, dtype."""

    name: str
    length: int
    dtype: np.dtype[Any]


@dataclass(frozen=True)
class HeaderIndex:
    """A feature index in the header: name, number of rows, files relative to the archive."""

    name: str
    length: int
    files: tuple[str, ...]


@dataclass(frozen=True)
class Header:
    """Content of ``header.sch``."""

    arrays: tuple[HeaderArray, ...]
    indexes: tuple[HeaderIndex, ...]
    version: tuple[int, int, int] = VERSION

    def to_bytes(self) -> bytes:
        """Serialise the header; ArchiveFormatError for a dtype without a code in the format."""
        parts = [MAGIC, bytes(self.version), struct.pack(">BI", _BIG_ENDIAN, _MEMMAP)]
        parts.append(struct.pack(">I", len(self.arrays)))
        for array in self.arrays:
            if array.dtype not in _CODES:
                raise ArchiveFormatError(
                    f"the memmap format cannot store {array.name} as {array.dtype}; "
                    f"it supports {', '.join(str(d) for d in _CODES)}"
                )
            parts += [
                _string(array.name),
                struct.pack(">QIB", array.length, _CODES[array.dtype], 0),
            ]
        parts.append(struct.pack(">I", len(self.indexes)))
        for index in self.indexes:
            parts += [_string(index.name), struct.pack(">QI", index.length, _STRING)]
            parts += [struct.pack(">I", len(index.files)), *map(_string, index.files), b"\0"]
        return b"".join(parts)

    @classmethod
    def from_bytes(cls, buffer: bytes, where: str) -> Header:
        """Parse and validate a header; error messages begin with `where`.

        Raises
        ------
        ArchiveFormatError
            The header violates the format.
        """
        reader = _Reader(buffer, where)
        if reader.unpack("4s", "magic") != (MAGIC,):
            raise reader.error(f"it starts with {buffer[:4]!r}, not with {MAGIC!r}")
        version = reader.unpack("3B", "version")
        if version[:2] > VERSION[:2]:
            raise newer_format(where, *(".".join(map(str, v)) for v in (version, VERSION)))
        endianness, backend = reader.unpack("BI", "endianness and backend")
        if endianness != _BIG_ENDIAN:
            raise reader.error(f"its endianness is {endianness}, expected {_BIG_ENDIAN}")
        if backend != _MEMMAP:
            raise reader.error(f"its backend is {backend}, expected {_MEMMAP} (memmap)")
        arrays, indexes, names = [], [], set()
        for kind in ("array", "index"):
            (n_entries,) = reader.unpack("I", f"the number of {kind} entries")
            for _ in range(n_entries):
                name, length, code, files = reader.entry(kind)
                if name in names:
                    raise reader.error(f"its names are not unique: {name!r:.100} is repeated")
                names.add(name)
                if kind == "array":
                    arrays.append(HeaderArray(name, length, _DTYPES[code]))
                else:
                    indexes.append(HeaderIndex(name, length, tuple(files)))
        if reader.position < len(buffer):
            excess = len(buffer) - reader.position
            raise reader.error(f"{excess} bytes follow its end at byte {reader.position}")
        return cls(tuple(arrays), tuple(indexes), version)


def _string(text: str) -> bytes:
    encoded = text.encode()
    return struct.pack(">I", len(encoded)) + encoded


class _Reader:
    """Sequential parser of a header, with errors that name the position."""

    def __init__(self, buffer: bytes, where: str) -> None:
        self.position = 0
        self._buffer, self._where = buffer, where

    def error(self, problem: str) -> ArchiveFormatError:
        return ArchiveFormatError(f"{self._where}: malformed header: {problem}")

    def unpack(self, layout: str, field: str) -> tuple[Any, ...]:
        """Read the next numbers or bytes, big-endian; `field` describes them for messages."""
        size = struct.calcsize(f">{layout}")
        piece = self._buffer[self.position : self.position + size]
        if len(piece) < size:
            raise self.error(
                f"it ends at byte {len(self._buffer)}, within {field} of {size} bytes at byte "
                f"{self.position}"
            )
        self.position += size
        return struct.unpack(f">{layout}", piece)

    def string(self, field: str) -> str:
        (length,) = self.unpack("I", f"the length of {field}")
        if length == 0:
            raise self.error(f"{field} is empty at byte {self.position}")
        (encoded,) = self.unpack(f"{length}s", field)
        try:
            return str(encoded, "utf-8")
        except UnicodeDecodeError:
            raise self.error(f"{field} before byte {self.position} is not UTF-8") from None

    def entry(self, kind: str) -> tuple[str, int, int, list[str]]:
        """Read name, length, dtype code and, of an index, the files of an entry."""
        name = self.string(f"an {kind}'s name")
        where = f"{kind} {name!r:.100}"
        length, code = self.unpack("QI", where)
        most = len(_NUMBERS) if kind == "array" else _FIXED_STRING
        if not 1 <= code <= most:
            raise self.error(f"{where} has dtype code {code}, expected 1 to {most}")
        files: list[str] = []
        if kind == "index":
            (n_files,) = self.unpack("I", f"the number of files of {where}")
            while len(files) < n_files:
                files.append(self.string(f"a file name of {where}"))
        (has_shape,) = self.unpack("B", f"the shape flag of {where}")
        if has_shape > 1:
            raise self.error(f"the shape flag of {where} is {has_shape}, expected 0 or 1")
        if has_shape:
            (n_dims,) = self.unpack("I", f"the shape of {where}")
            self.unpack(f"{4 * n_dims}x", f"the shape of {where}")
        return name, length, code, files
