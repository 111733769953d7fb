"""Encoding chunks in the format of :mod:`storage_backends.zarr.codecs.ans_format`."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from storage_backends.compute.jit import Int, kernel
from storage_backends.zarr.codecs.ans_format import (
    BATCH,
    ESCAPE,
    GROUP,
    N_CODERS,
    N_STATES,
    N_TOKENS,
    VERSION,
    Tables,
    context_of,
    least_of,
    spread,
    token_of,
)
from storage_backends.zarr.codecs.pcodec_head import BYTE, ONE


def encode(
    values: NDArray[Any], tables: Tables, *, differences: bool, ends: NDArray[np.int64] | None
) -> bytes:
    """Encode a chunk.

    Parameters
    ----------
    values
        The items, one-dimensional integers.
    tables
        How likely tokens are.
    differences
        Whether the items are ids in ascending order within each row.
    ends
        Where rows end, in ascending order, from the last end before the chunk, which may be
        negative, to the first one behind it. Items after the last may get any value. Default: the
        chunk is one row.
    """
    n, itemsize = len(values), values.itemsize
    edges = rows_of(n, ends)
    numbers = values.view(f"u{itemsize}").astype(np.uint64)
    n_known = min(n, int(edges[-1]))
    if n_known < n:
        edges = np.append(edges, n)
    out = np.zeros(n * (itemsize + 2) + 64, np.uint8)
    size, states = _write(numbers, itemsize, edges, n_known, tables, differences, out)
    lengths = np.diff(edges).tolist()
    head = [len(lengths), max(0, -int(edges[0])), *lengths]
    begin = states.astype("<u2").tobytes()
    return b"".join([bytes([VERSION]), *map(in_sevens, head), begin, out[:size].tobytes()])


def rows_of(n: int, ends: NDArray[np.int64] | None) -> NDArray[np.int64]:
    """Edges of the rows that have items in a chunk, from `ends` as :func:`encode` takes them."""
    if ends is None or not len(ends) or ends[0] > 0:
        ends = np.append(0, [] if ends is None else ends)
    first = np.searchsorted(ends, 0, side="right") - 1
    last = np.searchsorted(ends, n, side="left") + 1
    edges = np.unique(ends[first:last].astype(np.int64))
    return edges if n and edges[-1] > 0 else np.append(0, [n] * bool(n)).astype(np.int64)


def in_sevens(number: int) -> bytes:
    """A number in groups of seven bits, the lowest first; all but the last have a bit more."""
    groups = bytearray()
    while number > 127:
        groups.append(number & 127 | 128)
        number >>= 7
    return bytes([*groups, number])


@kernel
def tokens_of(
    numbers: NDArray[np.uint64],
    itemsize: Int,
    edges: NDArray[np.int64],
    differences: bool,
    contexts: NDArray[np.int64],
) -> None:
    """Replace ids by their differences within rows, and find the context of each number."""
    mask = ~np.uint64(0) >> np.uint64(64 - 8 * itemsize)
    for row in range(len(edges) - 1):
        first, length = max(edges[row], 0), edges[row + 1] - edges[row]
        previous, context = ~np.uint64(0), 0
        for k in range(first, min(edges[row + 1], len(numbers))):
            if (k - first) % GROUP == 0:
                context = context_of(k - edges[row], length)
            contexts[k] = context
            number = numbers[k]
            if differences:
                numbers[k] = (number - previous - ONE) & mask
                previous = number


@kernel
def _coder(
    weights: NDArray[np.uint16], begins: NDArray[np.int64], states: NDArray[np.int64]
) -> None:
    """States of each token in ascending order, after those of the tokens before it."""
    begins[0] = 0
    for token in range(N_TOKENS - 1):
        begins[token + 1] = begins[token] + weights[token]
    tokens, at = spread(weights), begins.copy()
    for state in range(N_STATES):
        states[at[tokens[state]]] = state
        at[tokens[state]] += 1


@kernel
def _put(word: Int, n_bits: Int, out: NDArray[np.uint8], position: Int) -> Int:
    """Write at most 32 bits to zeros; returns the position after them."""
    shifted, at = np.uint64(word) << np.uint64(position & 7), position >> 3
    while shifted:
        out[at] |= np.uint8(shifted & BYTE)
        shifted, at = shifted >> np.uint64(8), at + 1
    return position + n_bits


@kernel
def _write(
    numbers: NDArray[np.uint64],
    itemsize: Int,
    edges: NDArray[np.int64],
    n_known: Int,
    tables: Tables,
    differences: bool,
    out: NDArray[np.uint8],
) -> tuple[Int, NDArray[np.int64]]:
    """Write tokens and offsets; returns their size and the states with which decoding begins."""
    n, n_rows, weights = len(numbers), len(edges) - 1, tables.weights
    table, tokens = np.empty(n, np.int64), np.empty(n, np.int64)
    tokens_of(numbers, itemsize, edges, differences, table)
    for k in range(n):
        table[k] = tables.contexts[table[k]]
        if k >= n_known:
            tokens[k] = np.argmax(weights[table[k]])
            numbers[k] = np.uint64(least_of(tokens[k], itemsize)[0])
        else:
            token = token_of(numbers[k])
            tokens[k] = token if weights[table[k], token] else ESCAPE
    begins = np.empty((len(weights), N_TOKENS), np.int64)
    states = np.empty((len(weights), N_STATES), np.int64)
    for k in range(len(weights)):
        _coder(weights[k], begins[k], states[k])
    # Decoding ends with what encoding begins with, so numbers are encoded from the last one on.
    current = np.full(N_CODERS, N_STATES, np.int64)
    words, widths = np.empty(n, np.int64), np.empty(n, np.int64)
    for row in range(n_rows - 1, -1, -1):
        first = max(edges[row], 0)
        for k in range(min(edges[row + 1], n) - 1, first - 1, -1):
            weight, coder = np.int64(weights[table[k], tokens[k]]), (k - first) % GROUP % N_CODERS
            state, width = current[coder], 0
            while (state >> width) >= 2 * weight:
                width += 1
            words[k], widths[k] = state & ((1 << width) - 1), width
            place = begins[table[k], tokens[k]] + (state >> width) - weight
            current[coder] = N_STATES + states[table[k], place]
    position = 0
    for row in range(n_rows):
        begin, stop = max(edges[row], 0), min(edges[row + 1], n)
        for start in range(begin, stop, BATCH):
            for k in range(start, min(start + BATCH, stop)):
                position = _put(words[k], widths[k], out, position)
            for k in range(start, min(start + BATCH, stop)):
                least, width = least_of(tokens[k], itemsize)
                offset = numbers[k] - np.uint64(least)
                for shift in range(0, width, 32):
                    part = np.int64((offset >> np.uint64(shift)) & np.uint64(0xFFFFFFFF))
                    position = _put(part, min(32, width - shift), out, position)
    return (position + 7) >> 3, current - N_STATES
