"""The codec ``scdl.packed``: numbers of rows in frames, which are decoded on their own."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from storage_backends.directory.content import Content
from storage_backends.errors import ArchiveFormatError
from storage_backends.zarr.codecs import blosc as native
from storage_backends.zarr.codecs import frame_format, frame_writing, frames
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
    return int(
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


def decode(content: Content, needed: NDArray[np.int64], out: NDArray[Any]) -> int:
    """Decode the first items of chunks to the rows of `out`, as many as are needed of each."""
    n, length = out.shape
    starts = np.zeros(n, np.int64)
    pieces = np.arange(n + 1), starts, np.arange(n) * length, np.minimum(needed, length)
    return place(content, pieces, length, out.dtype, _EVERYTHING, out.reshape(-1))


def problem_at(found: int) -> tuple[int, str]:
    """Position and problem of a damaged chunk, from the result of :func:`place`."""
    if found >= frame_format.OTHER_VERSION:
        return found % frame_format.OTHER_VERSION, (
            f"another version of the codec {NAME} wrote it, this release of scdl-store reads "
            f"version {frame_format.VERSION}; update scdl-store"
        )
    problem = native.problem_at(found)
    assert problem is not None
    return problem


class Packed:
    """The codec as a function from chunks to bytes and back."""

    @staticmethod
    def encode(values: NDArray[Any], settings: dict[str, Any]) -> bytes:
        return frame_writing.encode(values)

    @staticmethod
    def decode(data: bytes, out: NDArray[Any]) -> None:
        chunk = np.frombuffer(data, np.uint8)
        content = Content(np.array([chunk.ctypes.data]), np.array([chunk.nbytes]), chunk)
        found = decode(content, np.array([len(out)]), out.reshape(1, -1))
        if found != native.SOUND:
            raise ArchiveFormatError(problem_at(found)[1])
