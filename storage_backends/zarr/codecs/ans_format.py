"""Numbers of rows, coded with tables that were fitted to an archive.

``docs/format.md`` describes them byte by byte. A number is a token, and an offset in as many bits
as the token says. Tokens are coded by four interleaved asymmetric numeral systems. Their weights
depend on the place in the row and on the length of the row, which are known before decoding: genes
are stored by detection rate, so both tell how likely values and gaps between ids are.

Sources: J. Duda, Asymmetric numeral systems, 2013; the tables are spread as in pcodec.
"""

from __future__ import annotations

import base64
import zlib
from typing import NamedTuple, Self

import numpy as np
from numpy.typing import NDArray

from storage_backends.compute.jit import Int, helper, kernel
from storage_backends.zarr.codecs.blosc import leading_zeros
from storage_backends.zarr.codecs.pcodec_head import ONE
from storage_backends.zarr.codecs.profiles import ANS

#: First byte of a chunk.
VERSION = 1

#: States of the coders, and bits that count them.
N_STATES, STATE_BITS = 1 << 10, 10
N_CODERS = 8
#: Tokens of numbers below `DIRECT` are the numbers; then there are two for each factor of two.
DIRECT, DIRECT_BITS, MOST_BITS = 16, 4, 16
#: Token of all other numbers, and of those whose token has no weight.
ESCAPE = DIRECT + 2 * (MOST_BITS - DIRECT_BITS)
N_TOKENS = ESCAPE + 1
#: Numbers of a row that share a table, and that are followed by their offsets.
GROUP, BATCH = 32, 256
#: Classes of lengths of rows, and of places in them.
N_DEPTHS, N_PLACES = 42, 32
MOST_TABLES = 64
#: Rows are shorter than this.
MOST_LENGTH = 1 << 42

_CONTEXTS = N_DEPTHS * N_PLACES


class Tables(NamedTuple):
    """Weights of tokens by context.

    Attributes
    ----------
    contexts
        Table of each context: of each class of lengths, of each class of places.
    weights
        Weights of the tokens of each table, whose sum is :data:`N_STATES`.
    """

    contexts: NDArray[np.uint8]
    weights: NDArray[np.uint16]

    def to_text(self) -> str:
        """The tables as they are in the metadata of arrays."""
        content = self.contexts.tobytes() + self.weights.astype("<u2").tobytes()
        return base64.b64encode(zlib.compress(content, 9)).decode()

    @classmethod
    def from_text(cls, text: str) -> Self:
        """The tables of an array; ValueError if they are invalid."""
        most = _CONTEXTS + MOST_TABLES * N_TOKENS * 2
        stream = zlib.decompressobj()
        try:
            content = stream.decompress(base64.b64decode(text, validate=True), most + 1)
        except (ValueError, zlib.error) as error:
            raise ValueError(f"the tables of the codec {ANS} are damaged: {error}") from error
        if len(content) > most:
            raise ValueError(f"the codec {ANS} has more than {MOST_TABLES} tables")
        n_tables, rest = divmod(len(content) - _CONTEXTS, N_TOKENS * 2)
        if n_tables < 1 or rest or not stream.eof:
            raise ValueError(f"the tables of the codec {ANS} are incomplete")
        contexts = np.frombuffer(content, np.uint8, _CONTEXTS).copy()
        weights = np.frombuffer(content, "<u2", offset=_CONTEXTS).reshape(n_tables, N_TOKENS)
        sums = weights.sum(axis=1, dtype=np.int64)
        if contexts.max() >= n_tables or (sums != N_STATES).any() or not weights[:, ESCAPE].all():
            raise ValueError(f"the tables of the codec {ANS} are invalid")
        return cls(contexts, weights.astype(np.uint16))


@helper
def token_of(number: np.uint64) -> Int:
    """Token of a number, if its table has it."""
    if number < np.uint64(DIRECT):
        return np.int64(number)
    if number >> np.uint64(MOST_BITS):
        return ESCAPE
    log = 63 - np.int64(leading_zeros(number))
    half = np.int64((number >> np.uint64(log - 1)) & ONE)
    return DIRECT + 2 * (log - DIRECT_BITS) + half


@helper
def least_of(token: Int, itemsize: Int) -> tuple[Int, Int]:
    """Least number of a token, and bits of its offset."""
    if token == ESCAPE:
        return np.int64(0), np.int64(8 * itemsize)
    if token < DIRECT:
        return np.int64(token), np.int64(0)
    log, half = DIRECT_BITS + (token - DIRECT) // 2, (token - DIRECT) & 1
    return np.int64((2 + half) << (log - 1)), np.int64(log - 1)


@helper
def context_of(place: Int, length: Int) -> Int:
    """Context of a group of numbers whose first has a place in a row of some length."""
    log = 63 - np.int64(leading_zeros(np.uint64(length)))
    half = (length >> (log - 1)) & 1 if log else 0
    return min(2 * log + half, N_DEPTHS - 1) * N_PLACES + place * N_PLACES // length


@kernel
def spread(weights: NDArray[np.uint16]) -> NDArray[np.int64]:
    """Token of each state: tokens are spread in steps of about three fifths of all states."""
    tokens = np.empty(N_STATES, np.int64)
    step, state = (3 * N_STATES) // 5 | 1, 0
    for token in range(N_TOKENS):
        for _ in range(weights[token]):
            tokens[state] = token
            state = (state + step) & (N_STATES - 1)
    return tokens
