"""Decoding rows of sparse matrices, whose values and ids are in frames, row by row."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from storage_backends.compute.jit import Int, fetch_to_write, kernel
from storage_backends.compute.rowsort import sort_row
from storage_backends.zarr.codecs.blosc import SOUND
from storage_backends.zarr.codecs.frames import (
    FRAMES_AHEAD,
    TAILS_AHEAD,
    bounded,
    decode_items,
    fetch_frame,
    fetch_tail,
    find_frame,
)

#: Results of :func:`decode_rows`: rows are as stored, or sorted; or a chunk is damaged.
STORED, SORTED, DAMAGED = range(3)


@kernel
def cut_rows(
    order: NDArray[np.int64],
    starts: NDArray[np.int64],
    stops: NDArray[np.int64],
    row_targets: NDArray[np.int64],
    chunk_length: Int,
    bounds: NDArray[np.int64],
    pieces: NDArray[np.int64],
    distinct: NDArray[np.int64],
) -> Int:
    """Cut rows at the edges of chunks; returns the number of distinct chunks.

    Parameters
    ----------
    order
        The rows by ascending starts, so that memory is read in ascending order.
    starts, stops, row_targets
        First and last item of each row, and its position in the output.
    bounds
        Output, offsets into the pieces: those of ``order[i]`` are ``bounds[i]`` to
        ``bounds[i + 1]``.
    pieces
        Output, of each piece the position of its chunk among the distinct ones, its positions in
        the chunk and in the output, and its length.
    distinct
        Output, the numbers of the chunks in ascending order.
    """
    n, n_distinct, last = 0, 0, np.int64(-1)
    for i in range(len(order)):
        row = order[i]
        bounds[i] = n
        at, target = starts[row], row_targets[row]
        while at < stops[row]:
            chunk = at // chunk_length
            end = min(stops[row], (chunk + 1) * chunk_length)
            if chunk > last:
                distinct[n_distinct] = last = chunk
                n_distinct += 1
            # A row that begins in this chunk may follow one that goes on to the last.
            pieces[0, n] = n_distinct - 1 - (last - chunk)
            pieces[1, n] = at - chunk * chunk_length
            pieces[2, n], pieces[3, n] = target, end - at
            target += end - at
            at, n = end, n + 1
    bounds[len(order)] = n
    return n_distinct


@kernel
def decode_rows(
    crc32c: Int,
    first: Int,
    last: Int,
    bounds: NDArray[np.int64],
    pieces: NDArray[np.int64],
    n_items: Int,
    places: NDArray[np.int64],
    types: NDArray[np.int64],
    below: Int,
    mapping: NDArray[np.uint32],
    n_columns: Int,
    data: NDArray[Any],
    indices: NDArray[Any],
) -> Int:
    """Decode rows `first` to `last`.

    Parameters
    ----------
    crc32c
        :data:`~storage_backends.zarr.codecs.blosc.CRC32C`.
    bounds, pieces
        The rows, see :func:`cut_rows`.
    n_items
        Items of each chunk.
    places
        Address and length of each chunk of values, and of each chunk of ids.
    types
        Size and kind of a stored value, and of an id.
    below, mapping
        Bound of the ids, 0 for none, and their replacements, if there are any.
    n_columns
        Upper bound of the replaced ids, by which rows are sorted; 0: they stay as they are.
    data, indices
        Bits of the outputs, items of the same types or wider integers.

    Returns
    -------
    int
        STORED, SORTED or DAMAGED.
    """
    begin, end = bounds[first], bounds[last]
    n = end - begin
    # Of each piece the frame of its values, and that of its ids.
    found = np.empty((2 * n, 3), np.int64)
    for k in range(n):
        chunk, later = pieces[0, begin + k], pieces[0, min(begin + k + TAILS_AHEAD, end - 1)]
        for part in range(2):
            fetch_tail(places[2 * part, later], places[2 * part + 1, later])
            problem = find_frame(
                crc32c, places[2 * part, chunk], places[2 * part + 1, chunk], n_items,
                pieces[1, begin + k], found, 2 * k + part,
            )  # fmt: skip
            if problem != SOUND:
                return DAMAGED
    longest: Int = 0
    for row in range(first, last):
        length = 0
        for piece in range(bounds[row], bounds[row + 1]):
            length += pieces[3, piece]
        longest = max(longest, length)
    n_words = (n_columns + 63) // 64
    seen, before = np.zeros(n_words, np.uint64), np.empty(n_words, np.int64)
    # Rows are sorted from memory that stays in the cache to where they belong.
    row_data = np.empty(longest if n_words else 0, data.dtype)
    row_indices = np.empty(longest if n_words else 0, indices.dtype)
    result = SORTED if n_words else STORED
    for row in range(first, last):
        n_row = 0
        for piece in range(bounds[row], bounds[row + 1]):
            at: Int = piece - begin
            chunk, source = pieces[0, piece], pieces[1, piece]
            ahead: Int = min(at + FRAMES_AHEAD, n - 1)
            later = pieces[0, begin + ahead]
            fetch_frame(places[2, later], places[3, later], found, 2 * ahead + 1)
            fetch_frame(places[0, later], places[1, later], found, 2 * ahead)
            target, length = pieces[2, piece], pieces[3, piece]
            if n_words:
                # Sorting does not write one item after the other, which the processor would see.
                fetch_to_write(data, target, length)
                fetch_to_write(indices, target, length)
                values, ids = row_data[n_row : n_row + length], row_indices[n_row : n_row + length]
            else:
                values, ids = data[target : target + length], indices[target : target + length]
            problem, largest = decode_items(
                crc32c, places[2, chunk], places[3, chunk], found, 2 * at + 1, source, types[2],
                types[3], ids,
            )  # fmt: skip
            if problem != SOUND or (below and not bounded(ids, largest, below, mapping)):
                return DAMAGED
            problem, _ = decode_items(
                crc32c, places[0, chunk], places[1, chunk], found, 2 * at, source, types[0],
                types[1], values,
            )  # fmt: skip
            if problem != SOUND:
                return DAMAGED
            n_row += length
        if n_words and n_row:
            values, ids, start = row_data[:n_row], row_indices[:n_row], pieces[2, bounds[row]]
            sorted_data, sorted_ids = data[start : start + n_row], indices[start : start + n_row]
            if not sort_row(values, ids, seen, before, sorted_data, sorted_ids):
                for k in range(n_row):
                    sorted_data[k], sorted_ids[k] = values[k], ids[k]
                result = STORED
    return result
