"""Chunks of the codec ``scdl.packed`` with right checksums, as an attacker would write them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from benchmarks.fuzz.guarded_memory import GuardedMemory
from storage_backends.directory.content import Content, checksum
from storage_backends.zarr.codecs import blosc, frame_rows, packed
from storage_backends.zarr.codecs.chain import Chain
from storage_backends.zarr.codecs.frame_format import ENTRY_BYTES, SUM_BYTES, TAIL_BYTES
from storage_backends.zarr.codecs.frame_writing import encode
from storage_backends.zarr.plan import Bound

_TYPES = ("u1", "u2", "u4", "u8", "i1", "i2", "i4", "i8", "f2", "f4", "f8")
#: Ends of the rows of chunks: a short one, one with whole blocks, and one that has both.
_ENDS = np.array([7, 263, 400])
_GENES = 300
#: Most items that are read of a chunk, and what its output lies between.
_MOST_ITEMS, _GUARD = 1 << 13, 64


def chunks(place: Path) -> list[bytes]:
    """Chunks without checksums, each after the number of its type."""
    rng, n = np.random.default_rng(0), int(_ENDS[-1])
    rows = np.split(rng.integers(0, _GENES, n), _ENDS[:-1])
    ids = np.concatenate([np.sort(rng.permutation(_GENES)[: len(row)]) for row in rows])
    kinds = (ids, rng.negative_binomial(1, 0.3, n) + 1, rng.integers(-9, 1_000, n), rng.random(9))
    found = []
    for number, name in enumerate(_TYPES):
        for values in kinds:
            with np.errstate(invalid="ignore"):
                items = np.resize(values, n).astype(name)
            found.append(bytes([number]) + encode(items, _ENDS))
    return found


def sealed(data: bytes) -> tuple[bytes, int]:
    """The chunk with right checksums wherever it has room for them, and its number of items."""
    chunk, n_items = bytearray(data), 0
    if len(chunk) < TAIL_BYTES:
        return data, 0
    n_frames = int.from_bytes(chunk[-TAIL_BYTES : 4 - TAIL_BYTES], "little")
    begin = len(chunk) - TAIL_BYTES - ENTRY_BYTES * n_frames
    if begin < 0:
        return data, 0
    at = 0
    entries = np.frombuffer(chunk[begin:-TAIL_BYTES], "<u2").reshape(-1, 2)
    for items, size in entries.tolist():
        end, n_items = at + size, n_items + items
        if size >= SUM_BYTES and end <= begin:
            chunk[end - SUM_BYTES : end] = checksum(bytes(chunk[at : end - SUM_BYTES]))
        at = end
    chunk[-SUM_BYTES:] = checksum(bytes(chunk[begin:-SUM_BYTES]))
    return bytes(chunk), n_items


class _Output:
    """An array between others that nothing may write to."""

    def __init__(self, n: int, dtype: np.dtype[Any]) -> None:
        self._all = np.full(n + 2 * _GUARD, 77, dtype)
        self.array: NDArray[Any] = self._all[_GUARD : n + _GUARD]

    def check(self) -> None:
        edges = np.concatenate([self._all[:_GUARD], self._all[-_GUARD:]])
        assert (edges == 77).all(), "written outside of the output"


def parser(place: Path) -> Any:
    """Read chunks in all ways: whole, in pieces, and as rows that are sorted."""
    memory, chains = GuardedMemory(), [_chain(name) for name in _TYPES]

    def parse(data: bytes) -> None:
        chain = chains[data[0] % len(chains)] if data else chains[0]
        chunk, n_items = sealed(data[1:])
        content, n = memory.content(chunk), min(n_items, _MOST_ITEMS)
        if chain.stored.kind == "u" and n:
            _read_rows(content, chain.stored, n_items, n)
        start = n // 3
        for first, count, dtype, bound in (
            (0, n, chain.stored, Bound.of()),
            (start, n - start - n // 9, chain.stored, Bound.of()),
            (start, n - start, np.dtype("u8"), Bound.of(_GENES, np.arange(_GENES, dtype="u4"))),
        ):
            if dtype != chain.stored and chain.stored.kind != "u":
                continue
            out = _Output(count, dtype)
            pieces = tuple(np.array(part) for part in ([0, 1], [first], [0], [count]))
            try:
                found = chain.place(content, pieces, n_items, bound, out.array)
            finally:
                out.check()
            assert found != -1 or not bound.below or (out.array < bound.below).all()

    return parse


def _chain(name: str) -> Chain:
    chain = Chain.of([{"name": packed.NAME}], np.dtype(name))
    assert chain is not None
    return chain


def _read_rows(content: Content, dtype: np.dtype[Any], n_items: int, n: int) -> None:
    """Read items as the values and as the ids of two rows, in frames or across their edges."""
    values, ids = _Output(n, dtype), _Output(n, dtype)
    cut = min(int(_ENDS[0]), n)
    pieces = np.array([[0, 0], [0, cut], [0, cut], [cut, n - cut]])
    places = np.array([content.addresses[0], content.lengths[0]] * 2).reshape(4, 1)
    types = np.array([dtype.itemsize, packed.kind_of(dtype)] * 2)
    bounds, mapping = np.arange(3), np.empty(0, np.uint32)
    frame_rows.decode_rows(
        blosc.CRC32C, 0, 2, bounds, pieces, n_items, places, types, _GENES, mapping, _GENES,
        values.array, ids.array,
    )  # fmt: skip
    values.check()
    ids.check()
