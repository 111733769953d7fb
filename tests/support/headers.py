"""Headers of the documented format, byte by byte, independent of the code under test."""

from __future__ import annotations

import io
import struct
from pathlib import Path
from typing import Any

#: A string that a header states: its bytes, and what it says their number is.
Text = bytes | tuple[int, bytes]


def text(value: Text) -> bytes:
    length, content = (len(value), value) if isinstance(value, bytes) else value
    return struct.pack(">I", length) + content


def array_bytes(name: Text, length: int, dtype: int, shape: list[int] | None) -> bytes:
    shaped = b"\0" if shape is None else struct.pack(f">BI{len(shape)}I", 1, len(shape), *shape)
    return text(name) + struct.pack(">QI", length, dtype) + shaped


def index_bytes(
    name: Text, length: int, dtype: int, files: list[Text], n_files: int | None = None
) -> bytes:
    count = len(files) if n_files is None else n_files
    head = text(name) + struct.pack(">QII", length, dtype, count)
    return head + b"".join(map(text, files)) + b"\0"


def _encode(name: str | Text) -> Text:
    return name.encode() if isinstance(name, str) else name


def header_bytes(
    *,
    magic: bytes = b"SCDL",
    version: tuple[int, int, int] = (0, 1, 0),
    endianness: int = 1,
    backend: int = 1,
    arrays: list[tuple[Any, int, int, list[int] | None]],
    indexes: list[tuple[Any, int, int, list[Any]]],
    n_arrays: int | None = None,
    n_indexes: int | None = None,
) -> bytes:
    """A header as the format describes it, written by hand."""
    encoded = [(_encode(name), *rest) for name, *rest in arrays]
    listed = [(_encode(n), length, dtype, list(map(_encode, f))) for n, length, dtype, f in indexes]
    counted = len(arrays) if n_arrays is None else n_arrays
    head = magic + struct.pack(">BBBBII", *version, endianness, backend, counted)
    body = b"".join(array_bytes(*array) for array in encoded)
    tail = struct.pack(">I", len(indexes) if n_indexes is None else n_indexes)
    return head + body + tail + b"".join(index_bytes(*index) for index in listed)


def header_of(path: Path) -> dict[str, Any]:
    """The fields of a valid header, as `header_bytes` takes them."""
    stream = io.BytesIO(path.read_bytes())

    def take(layout: str) -> tuple[Any, ...]:
        return struct.unpack(">" + layout, stream.read(struct.calcsize(">" + layout)))

    def string() -> str:
        return stream.read(*take("I")).decode()

    def shape() -> list[int] | None:
        if not take("B")[0]:
            return None
        (dims,) = take("I")
        return list(take(f"{dims}I"))

    assert stream.read(4) == b"SCDL"
    fields: dict[str, Any] = {"version": take("BBB"), "endianness": take("B")[0]}
    fields["backend"] = take("I")[0]
    fields["arrays"] = [(string(), *take("QI"), shape()) for _ in range(take("I")[0])]
    fields["indexes"] = []
    for _ in range(take("I")[0]):
        name = string()
        length, dtype, n_files = take("QII")
        fields["indexes"].append((name, length, dtype, [string() for _ in range(n_files)]))
        assert shape() is None
    assert stream.read() == b""
    return fields
