"""Copying frames of rows as they are, to be decoded elsewhere."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from storage_backends.compute.jit import Int, kernel
from storage_backends.zarr.codecs.blosc import SOUND, byte_at, is_intact
from storage_backends.zarr.codecs.frame_format import MOST_ITEMS, SUM_BYTES
from storage_backends.zarr.codecs.frames import directory_at, entry_at, find_frame

#: Columns of a table of frames: position and bytes of a frame in the content, without its checksum,
#: and its items; the first item to use, how many, and the position of the first in the output.
OFFSET, SIZE, ITEMS, SKIP, TAKE, TARGET = range(6)
N_COLUMNS = 6
#: Instead of a number: a chunk is damaged.
DAMAGED = -1


@kernel
def count_frames(
    crc32c: Int,
    pieces: NDArray[np.int64],
    places: NDArray[np.int64],
    n_items: Int,
    found: NDArray[np.int64],
) -> tuple[Int, Int]:
    """Number and bytes of the frames that pieces of chunks touch; DAMAGED instead of a number.

    Parameters
    ----------
    pieces
        Pieces of rows, see :func:`~.frame_rows.cut_rows`.
    places
        Address and length of each chunk.
    n_items
        Items of each chunk.
    found
        Output, where the first frame of each piece is, see :func:`~.frames.find_frame`.
    """
    n_frames = n_bytes = 0
    for k in range(pieces.shape[1]):
        address, length = places[0, pieces[0, k]], places[1, pieces[0, k]]
        start = pieces[1, k]
        if find_frame(crc32c, address, length, n_items, start, found, k) != SOUND:
            return DAMAGED, 0
        directory, last = directory_at(address, length)
        frame, first = found[k, 0], found[k, 1]
        while frame < last and first < start + pieces[3, k]:
            items, size = entry_at(directory, frame)
            frame, first = frame + 1, first + items
            n_frames, n_bytes = n_frames + 1, n_bytes + size
    return n_frames, n_bytes


@kernel
def copy_frames(
    crc32c: Int,
    pieces: NDArray[np.int64],
    places: NDArray[np.int64],
    found: NDArray[np.int64],
    table: NDArray[np.int64],
    content: NDArray[np.uint8],
    at: Int,
) -> Int:
    """Check and copy counted frames; returns the end of the content, or DAMAGED.

    A frame that follows itself, since several rows share it, is copied once. Files may change while
    they are read, so nothing is written beyond what was counted.

    Parameters
    ----------
    table
        Output, a row for each frame of a piece, with the columns of this module.
    content, at
        Output of the frames, and the position of the first.
    """
    row, before, offset = 0, np.int64(0), at
    for k in range(pieces.shape[1]):
        address, length = places[0, pieces[0, k]], places[1, pieces[0, k]]
        directory, last = directory_at(address, length)
        frame, first, begin = found[k, 0], found[k, 1], found[k, 2]
        start, stop = pieces[1, k], pieces[1, k] + pieces[3, k]
        while first < stop:
            if frame >= last or row == len(table):
                return DAMAGED
            items, size = entry_at(directory, frame)
            source, n_bytes = address + begin, size - SUM_BYTES
            if not (0 < items <= MOST_ITEMS and 0 < n_bytes <= len(content) - at):
                return DAMAGED
            if source != before:
                if not is_intact(crc32c, source, n_bytes):
                    return DAMAGED
                before, offset = source, at
                for j in range(n_bytes):
                    content[at + j] = byte_at(source + j)
                at += n_bytes
            begins = max(start, first)
            table[row, OFFSET], table[row, SIZE], table[row, ITEMS] = offset, n_bytes, items
            table[row, SKIP], table[row, TAKE] = begins - first, min(stop, first + items) - begins
            table[row, TARGET] = pieces[2, k] + begins - start
            row, frame, first, begin = row + 1, frame + 1, first + items, begin + size
    return at
