"""Mutations of inputs: pure functions of a seed and a number, so that each can be repeated."""

from __future__ import annotations

import copy
import json
import random
from collections.abc import Callable, Sequence
from typing import Any

#: Numbers at which programs often fail.
_INTEGERS = (0, 1, 2, 7, 127, 128, 255, 256, 2**15, 2**16 - 1, 2**31 - 1, 2**31, 2**32 - 1)
_LARGE = (2**32, 2**40, 2**62, 2**63 - 1, 2**63, 2**64 - 1)
_STRINGS = (
    "",
    ".",
    "..",
    "../../etc/passwd",
    "/etc/passwd",
    "\0",
    "\ud800",
    "a" * 300,
    "http://x/",
)
_VALUES: tuple[Any, ...] = (
    *(None, True, False, -1, 0.5, -0.0, float("nan"), float("inf"), [], {}, "1", 10**400),
    *(*_INTEGERS, *_LARGE, *_STRINGS),
    *("pickle", "numcodecs.pickle", "blosc", "zstd", "object", "<U1000000", "|O", "float128"),
)
#: Numbers of changes of an input, drawn at random; mostly few.
_CHANGES = (1, 1, 1, 2, 2, 4, 16)
#: Most bytes of an input.
_LONGEST = 1 << 17


def make(corpus: Sequence[bytes], seed: int, number: int) -> bytes:
    """The input of a number: one of the corpus, mutated."""
    rng = random.Random((seed << 40) + number)
    data = bytearray(corpus[rng.randrange(len(corpus))])
    if data[:1] in (b"{", b"[") and rng.random() < 0.7:
        return _mutated_json(rng, bytes(data))
    for _ in range(rng.choice(_CHANGES)):
        rng.choice(_MUTATORS)(rng, data, corpus)
        del data[_LONGEST:]
    return bytes(data)


def _flip(rng: random.Random, data: bytearray, corpus: Sequence[bytes]) -> None:
    if data:
        data[rng.randrange(len(data))] ^= 1 << rng.randrange(8)


def _overwrite(rng: random.Random, data: bytearray, corpus: Sequence[bytes]) -> None:
    if data:
        data[rng.randrange(len(data))] = rng.randrange(256)


def _integer(rng: random.Random, data: bytearray, corpus: Sequence[bytes]) -> None:
    """Write an integer, of any width and byte order."""
    width = rng.choice((1, 2, 4, 8))
    at = rng.randrange(len(data) + 1)
    value = rng.choice(_INTEGERS + _LARGE) % (1 << 8 * width)
    data[at : at + width] = value.to_bytes(width, rng.choice(("little", "big")))


def _remove(rng: random.Random, data: bytearray, corpus: Sequence[bytes]) -> None:
    at = rng.randrange(len(data) + 1)
    del data[at : at + rng.choice((1, 2, 8, 64))]


def _cut(rng: random.Random, data: bytearray, corpus: Sequence[bytes]) -> None:
    del data[rng.randrange(len(data) + 1) :]


def _repeat(rng: random.Random, data: bytearray, corpus: Sequence[bytes]) -> None:
    """Insert a copy of a block at another position."""
    start = rng.randrange(len(data) + 1)
    block = data[start : start + rng.choice((1, 4, 16, 256))] * rng.choice((1, 1, 2, 64))
    at = rng.randrange(len(data) + 1)
    data[at:at] = block


def _replace(rng: random.Random, data: bytearray, corpus: Sequence[bytes]) -> None:
    """Overwrite another position by a copy of a block."""
    start, at = rng.randrange(len(data) + 1), rng.randrange(len(data) + 1)
    block = data[start : start + rng.choice((1, 4, 16, 64))]
    data[at : at + len(block)] = block


def _splice(rng: random.Random, data: bytearray, corpus: Sequence[bytes]) -> None:
    """Replace the end by that of another input."""
    other = corpus[rng.randrange(len(corpus))]
    data[rng.randrange(len(data) + 1) :] = other[rng.randrange(len(other) + 1) :]


_MUTATORS: tuple[Callable[[random.Random, bytearray, Sequence[bytes]], None], ...] = (
    *(_flip, _flip, _overwrite, _overwrite, _integer, _integer, _integer),
    *(_remove, _cut, _repeat, _replace, _splice),
)


def _mutated_json(rng: random.Random, data: bytes) -> bytes:
    """Change, remove, repeat or exchange values of a JSON document."""
    document = [json.loads(data)]
    for _ in range(rng.choice(_CHANGES)):
        holder, key = _place(rng, document)
        change = rng.random()
        if change < 0.7 or holder is document:
            holder[key] = copy.copy(rng.choice(_VALUES))
        elif change < 0.8:
            del holder[key]
        elif change < 0.9 and isinstance(holder, list):
            holder[key:key] = json.loads(json.dumps([holder[key]] * rng.choice((1, 2, 100))))
        else:
            other, where = _place(rng, document)
            holder[key] = json.loads(json.dumps(other[where]))
    text = json.dumps(document[0])
    if rng.random() < 0.02:
        text = text.replace("null", "[" * 20_000, 1).replace(": 1", f": {'9' * 5_000}", 1)
    return text.encode()


def _place(rng: random.Random, document: list[Any]) -> tuple[Any, Any]:
    """A random value of a document: its container and its key."""
    holder: Any = document
    key: Any = 0
    while isinstance(holder[key], list | dict) and holder[key] and rng.random() < 0.85:
        holder = holder[key]
        keys = list(holder) if isinstance(holder, dict) else range(len(holder))
        key = keys[rng.randrange(len(keys))]
    return holder, key
