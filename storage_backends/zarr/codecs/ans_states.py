"""Tables of the states of ``scdl.ans``, and decoding tokens with them."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from storage_backends.compute.jit import Int, helper, kernel
from storage_backends.zarr.codecs.ans_format import (
    N_CODERS,
    N_STATES,
    STATE_BITS,
    least_of,
    spread,
)
from storage_backends.zarr.codecs.blosc import leading_zeros, word_at
from storage_backends.zarr.codecs.pcodec_head import BYTE, ONE

#: Differences are summed around the middle of 16-bit numbers, as in pcodec.
MIDDLE = 1 << 15


@kernel
def states_of(weights: NDArray[np.uint16], itemsize: Int, differences: bool) -> NDArray[np.uint64]:
    """Tables of states as ``pcodec`` has them, one for each row of weights.

    Differences of 16-bit numbers have the lower bound that :func:`~.pcodec.sum_up` takes.
    """
    states = np.empty((len(weights), N_STATES), np.uint64)
    added = 1 + MIDDLE if differences and itemsize == 2 else 0
    for table in range(len(weights)):
        tokens, visits = spread(weights[table]), weights[table].astype(np.uint64)
        for state in range(N_STATES):
            visit = visits[tokens[state]]
            visits[tokens[state]] += ONE
            n_bits = np.uint64(STATE_BITS) + leading_zeros(visit) - np.uint64(63)
            following = (visit << n_bits) - np.uint64(N_STATES)
            least, width = least_of(tokens[state], itemsize)
            content = np.uint64(((least + added) & 0xFFFF) << 16 | width << 8)
            states[table, state] = n_bits | content | following << np.uint64(32)
    return states


@helper
def read_tokens(
    position: Int,
    states: Int,
    at: NDArray[np.uint64],
    batch: NDArray[np.uint32],
    start: Int,
    stop: Int,
) -> Int:
    """Decode the tokens of a group with eight interleaved states, of which four share a load.

    Parameters
    ----------
    states
        Address of the table of states.
    at
        The eight states.
    """
    a, b, c, d, e, f, g, h = at[0], at[1], at[2], at[3], at[4], at[5], at[6], at[7]
    place, whole = np.uint64(position), start + ((stop - start) & -N_CODERS)
    for i in range(start, whole, N_CODERS):
        one, two, three, four = _at(states, a), _at(states, b), _at(states, c), _at(states, d)
        five, six, seven, eight = _at(states, e), _at(states, f), _at(states, g), _at(states, h)
        batch[i], batch[i + 1], batch[i + 2], batch[i + 3] = one, two, three, four
        batch[i + 4], batch[i + 5], batch[i + 6], batch[i + 7] = five, six, seven, eight
        word = word_at(np.int64(place >> np.uint64(3))) >> (place & np.uint64(7))
        place += (one + two + three + four) & BYTE
        next_word = word_at(np.int64(place >> np.uint64(3))) >> (place & np.uint64(7))
        place += (five + six + seven + eight) & BYTE
        a, word = _step(one, word)
        b, word = _step(two, word)
        c, word = _step(three, word)
        d, word = _step(four, word)
        e, next_word = _step(five, next_word)
        f, next_word = _step(six, next_word)
        g, next_word = _step(seven, next_word)
        h, next_word = _step(eight, next_word)
    at[0], at[1], at[2], at[3], at[4], at[5], at[6], at[7] = a, b, c, d, e, f, g, h
    for i in range(whole, stop):
        state = _at(states, at[i - whole])
        word = word_at(np.int64(place >> np.uint64(3))) >> (place & np.uint64(7))
        at[i - whole], _ = _step(state, word)
        place += state & BYTE
        batch[i] = state
    return np.int64(place)


@kernel
def _at(states: Int, number: Int) -> Int:
    return word_at(states + np.int64(number << np.uint64(3)))


@kernel
def _step(state: Int, word: Int) -> tuple[Int, Int]:
    """The next state, and the word without the bits that it takes."""
    n_bits = state & BYTE
    return (state >> np.uint64(32)) + (word & ((ONE << n_bits) - ONE)), word >> n_bits
