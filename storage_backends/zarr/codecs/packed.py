"""The codec ``scdl.packed``: numbers of rows in frames, which are decoded on their own."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from storage_backends.directory.content import Content
from storage_backends.zarr.codecs import blosc as native
from storage_backends.zarr.codecs import frame_format, frame_writing, frames
from storage_backends.zarr.codecs.chunk_errors import check
from storage_backends.zarr.codecs.profiles import PACKED
from storage_backends.zarr.plan import Bound, ChunkPieces

NAME = PACKED
_EVERYTHING = Bound(0, np.empty(0, np.uint32))


def kind_of(dtype: np.dtype[Any]) -> int:
    """Kind of the items of a type."""
    return frame_format.KINDS[dtype.kind]


def place(
    content: Content,
    pieces: ChunkPieces,
    n_items: int,
    dtype: np.dtype[Any],
    bound: Bound,
    out: NDArray[Any],
) -> int:
    """Decode pieces of chunks to `out`, see :func:`~.frames.place_frames`.

    Returns the position of the first chunk with a number out of bounds, or -1.

    Parameters
    ----------
    pieces
        The bounds, sources, targets and lengths of the pieces.
    n_items
        Items of each chunk.
    dtype
        Type of the stored items.
    bound
        Bounds of ids, with a mapping of uint32.
    """
    addresses, lengths, _ = content
    found = int(
        frames.place_frames(
            native.CRC32C,
            addresses,
            lengths,
            *pieces,
            n_items,
            dtype.itemsize,
            kind_of(dtype),
            bound,
            out.view(f"u{out.itemsize}"),
        )
    )
    if frame_format.BEYOND <= found < native.LATER:
        return found - frame_format.BEYOND
    check(found, NAME, frame_format.VERSION)
    return -1


def decode(content: Content, needed: NDArray[np.int64], out: NDArray[Any]) -> None:
    """Decode the first items of chunks to the rows of `out`, as many as are needed of each."""
    n, length = out.shape
    starts = np.zeros(n, np.int64)
    pieces = np.arange(n + 1), starts, np.arange(n) * length, np.minimum(needed, length)
    place(content, pieces, length, out.dtype, _EVERYTHING, out.reshape(-1))


class Packed:
    """The codec as a function from chunks to bytes and back."""

    @staticmethod
    def encode(values: NDArray[Any], settings: dict[str, Any]) -> bytes:
        return frame_writing.encode(values)

    @staticmethod
    def decode(data: bytes, out: NDArray[Any]) -> None:
        chunk = np.frombuffer(data, np.uint8)
        content = Content(np.array([chunk.ctypes.data]), np.array([chunk.nbytes]), chunk)
        decode(content, np.array([len(out)]), out.reshape(1, -1))
