"""Text of Zarr arrays as Arrow arrays, without creating a Python object per string.

Sources: codec ``vlen-utf8`` of the Zarr extensions: the number of strings, then the length and
the bytes of each, numbers as little-endian uint32; Arrow columnar format, large strings.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import numpy as np
import pyarrow as pa
import zarr
from numpy.typing import NDArray
from zarr.core.buffer import Buffer
from zarr.core.sync import sync

from storage_backends.compute.claims import BYTES_PER_BYTE, FREE_BYTES
from storage_backends.compute.jit import kernel
from storage_backends.errors import one_line
from storage_backends.zarr.codecs import encodings
from storage_backends.zarr.codecs.profiles import Codec
from storage_backends.zarr.nodes import Node

LENGTH_BYTES = 4
#: Chunks requested at once.
_WINDOW_CHUNKS = 64


def reader(array: zarr.Array[Any]) -> Callable[[int, int], pa.Array]:
    """Function that reads rows ``[start, stop)`` of an array of text, as large strings.

    Damaged chunks raise errors of zarr or Arrow, or ValueError.
    """
    node = Node.of(array).array
    assert node is not None
    grid = node.grid
    if grid is not None and not grid.per_shard and len(node.shape) == 1:
        serializer, *compressors = grid.codecs
        if serializer["name"] == "vlen-utf8" and encodings.can_decompress(compressors):
            return partial(_directly, array, compressors)
    return partial(_through_zarr, array)


def _through_zarr(array: zarr.Array[Any], start: int, stop: int) -> pa.Array:
    """Read text through zarr: arrays with other codecs, and format 2."""
    values = np.asarray(array[start:stop]).tolist()
    return pa.array([_text(value) for value in values], pa.large_string())


def _text(value: Any) -> str | None:
    if isinstance(value, bytes):
        return value.decode()
    # Object arrays may have missing values of pandas.
    return None if value is None or value != value else str(value)


def _directly(
    array: zarr.Array[Any], compressors: Sequence[Codec], start: int, stop: int
) -> pa.Array:
    rows = array.chunks[0]
    first, last = start // rows, -(-stop // rows)
    pieces = []
    for begin in range(first, last, _WINDOW_CHUNKS):
        numbers = range(begin, min(begin + _WINDOW_CHUNKS, last))
        for number, chunk in zip(numbers, sync(_fetch(array, numbers)), strict=True):
            skipped = max(start - number * rows, 0)
            kept = min(rows, stop - number * rows) - skipped
            pieces.append(_strings(array, compressors, number, chunk).slice(skipped, kept))
    return pa.concat_arrays(pieces) if pieces else pa.array([], pa.large_string())


async def _fetch(array: zarr.Array[Any], numbers: Sequence[int]) -> Sequence[Buffer | None]:
    return await asyncio.gather(*((array.store_path / f"c/{n}").get() for n in numbers))


def _strings(
    array: zarr.Array[Any], compressors: Sequence[Codec], number: int, chunk: Buffer | None
) -> pa.Array:
    """The strings of a chunk; fill values if it was not written."""
    if chunk is None:
        return pa.array([str(array.fill_value)] * array.chunks[0], pa.large_string())
    try:
        return _decoded(chunk.to_bytes(), compressors, array.chunks[0])
    except Exception as error:
        raise ValueError(f"chunk {number}: {one_line(error)}") from error


def _decoded(data: bytes, compressors: Sequence[Codec], rows: int) -> pa.Array:
    """The strings in the bytes of a chunk."""
    data = encodings.decompress(data, compressors, FREE_BYTES + BYTES_PER_BYTE * len(data))
    count = int.from_bytes(data[:LENGTH_BYTES], "little")
    if count != rows or len(data) < LENGTH_BYTES * (rows + 1):
        raise ValueError(f"expected {rows:,} strings, found {count:,} in {len(data):,} bytes")
    # Memory is allocated only after the sizes have been checked.
    offsets = np.zeros(rows + 1, np.int64)
    text = np.empty(len(data) - LENGTH_BYTES * (rows + 1), np.uint8)
    if not _split(np.frombuffer(data, np.uint8), offsets, text):
        raise ValueError("a string extends beyond the end of the chunk")
    buffers = [None, pa.py_buffer(offsets), pa.py_buffer(text)]
    # The cast validates UTF-8.
    return pa.Array.from_buffers(pa.large_binary(), rows, buffers).cast(pa.large_string())


@kernel
def _split(data: NDArray[np.uint8], offsets: NDArray[np.int64], text: NDArray[np.uint8]) -> bool:
    """Separate lengths from text; False if the lengths exceed the data."""
    at, filled = LENGTH_BYTES, 0
    for i in range(len(offsets) - 1):
        length: Any = np.int64(0)
        for j in range(LENGTH_BYTES):
            length |= np.int64(data[at + j]) << (8 * j)
        at += LENGTH_BYTES
        if length > len(text) - filled:
            return False
        for j in range(length):
            text[filled + j] = data[at + j]
        at += length
        filled += length
        offsets[i + 1] = filled
    return True
