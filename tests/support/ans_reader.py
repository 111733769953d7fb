"""A second reader of the codec scdl.ans, from its page (docs/format.md) alone.

It decodes number by number, checks all that the page says, and shares no code with the library.
"""

from __future__ import annotations

import base64
import zlib
from typing import NamedTuple

import numpy as np

N_STATES, N_CODERS, N_TOKENS, ESCAPE = 1_024, 8, 41, 40
GROUP, BATCH = 32, 256
N_LENGTHS, N_PLACES = 42, 32


class Tables(NamedTuple):
    """The table of each context, and of each table the token, bits and next state of each state."""

    contexts: bytes
    states: list[list[tuple[int, int, int]]]


def tables(text: str) -> Tables:
    """Read the tables in the configuration of the codec."""
    content = zlib.decompress(base64.b64decode(text))
    contexts, weights = content[: N_LENGTHS * N_PLACES], content[N_LENGTHS * N_PLACES :]
    rows = np.frombuffer(weights, "<u2").reshape(-1, N_TOKENS)
    return Tables(contexts, [_states(row.tolist()) for row in rows])


def _states(weights: list[int]) -> list[tuple[int, int, int]]:
    assert sum(weights) == N_STATES
    assert weights[ESCAPE] > 0
    tokens, state = [0] * N_STATES, 0
    for token, weight in enumerate(weights):
        for _ in range(weight):
            tokens[state] = token
            state = (state + 615) % N_STATES
    seen, found = list(weights), []
    for token in tokens:
        n_bits = 0
        while seen[token] << n_bits < N_STATES:
            n_bits += 1
        found.append((token, n_bits, (seen[token] << n_bits) - N_STATES))
        seen[token] += 1
    return found


class _Bits:
    """Bits of bytes, of which the lowest of each byte is the first."""

    def __init__(self, data: bytes) -> None:
        self._number, self._n, self.at = int.from_bytes(data, "little"), 8 * len(data), 0

    def take(self, n: int) -> int:
        number = self._number >> self.at & ((1 << n) - 1)
        self.at += n
        _check(self.at <= self._n, "bits beyond the end")
        return number

    @property
    def is_at_end(self) -> bool:
        return (self.at + 7) // 8 * 8 == self._n


def decode(
    chunk: bytes, text: str, dtype: np.dtype | str, n_items: int, *, differences: bool
) -> np.ndarray:
    """Return all items of a chunk without its checksum; ValueError."""
    dtype, known = np.dtype(dtype), tables(text)
    _check(chunk[:1] == b"\x01", "another version")
    numbers, at = [], 1
    while len(numbers) < 2 or len(numbers) < 2 + numbers[0]:
        number, at = _sevens(chunk, at)
        numbers.append(number)
    _, before, *lengths = numbers
    _check(len(chunk) >= at + 2 * N_CODERS, "no states")
    states = np.frombuffer(chunk[at : at + 2 * N_CODERS], "<u2").tolist()
    _check(max(states) < N_STATES, "a state that does not exist")
    rows = _rows(lengths, before, n_items)
    bits, found = _Bits(chunk[at + 2 * N_CODERS :]), []
    for place, n, length in rows:
        found += _row(bits, states, known, place, n, length, 8 * dtype.itemsize, differences)
    _check(bits.is_at_end, "bytes after the last number")
    return np.array(found, np.uint64).astype(f"u{dtype.itemsize}").view(dtype)


def _sevens(chunk: bytes, at: int) -> tuple[int, int]:
    number = 0
    for k in range(6):
        _check(at + k < len(chunk), "a number beyond the end")
        number |= (chunk[at + k] & 127) << 7 * k
        if chunk[at + k] < 128:
            return number, at + k + 1
    raise ValueError("a number of more than 6 bytes")


def _rows(lengths: list[int], before: int, n_items: int) -> list[tuple[int, int, int]]:
    """The first place, number of items in the chunk, and length of each row."""
    rows, left = [], n_items
    _check(bool(lengths) or not before, "items before without a row")
    for length in lengths:
        _check(left > 0 and before < length, "a row without items")
        n = min(length - before, left)
        rows.append((before, n, length))
        before, left = 0, left - n
    _check(left == 0, "items without a row")
    return rows


def _row(
    bits: _Bits,
    states: list[int],
    known: Tables,
    place: int,
    n: int,
    length: int,
    width: int,
    differences: bool,
) -> list[int]:
    found, previous = [], -1
    log = length.bit_length() - 1
    kind = min(2 * log + (length >> (log - 1) & 1 if log else 0), N_LENGTHS - 1)
    for batch in range(0, n, BATCH):
        tokens = []
        for k in range(batch, min(batch + BATCH, n)):
            group = k - k % GROUP
            table = known.contexts[N_PLACES * kind + (place + group) * N_PLACES // length]
            coder = (k - group) % N_CODERS
            token, n_bits, following = known.states[table][states[coder]]
            states[coder] = following + bits.take(n_bits)
            tokens.append(token)
        for token in tokens:
            number = _number(token, bits, width)
            if differences:
                previous = number = (previous + 1 + number) % (1 << width)
            found.append(number % (1 << width))
    return found


def _number(token: int, bits: _Bits, width: int) -> int:
    if token < 16:
        return token
    if token == ESCAPE:
        return bits.take(width)
    n_bits = 3 + (token - 16) // 2
    return ((2 + token % 2) << n_bits) + bits.take(n_bits)


def _check(condition: bool, problem: str) -> None:
    if not condition:
        raise ValueError(problem)
