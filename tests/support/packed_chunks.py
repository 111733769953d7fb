"""Chunks of the codec scdl.packed, and reading them."""

from __future__ import annotations

from typing import Any

import numpy as np
from hypothesis import strategies as st

from benchmarks.fuzz.guarded_memory import GuardedMemory
from storage_backends.directory.content import Content
from storage_backends.zarr.codecs import packed
from storage_backends.zarr.codecs.chain import Chain
from storage_backends.zarr.codecs.frame_writing import encode
from storage_backends.zarr.plan import Bound

INTEGERS = ["u1", "u2", "u4", "u8", "i1", "i2", "i4", "i8"]
TYPES = [*INTEGERS, "f2", "f4", "f8"]
KINDS = ["bits", "extremes", "constant", "rising", "falling", "few", "counts", "gaps", "offsets"]
#: What follows the number of a version that is too new.
UPGRADE = "this release reads up to 1; upgrade scdl-store"
CODECS = [{"name": "scdl.packed"}]
#: Lengths at which frames, blocks and their widths begin to differ.
EDGES = [0, 1, 31, 32, 33, 64, 127, 128, 129, 1_023, 1_024, 1_025, 4_095, 4_096, 4_097, 5_000]
SPECIAL = [0.0, -0.0, 1.0, -1.0, 2.0**24, 2.0**24 + 2, -(2.0**24), 2.0**53, 2.0**53 + 2, -(2.0**53)]
SPECIAL += [2.0**63, -(2.0**63), 2.0**64, 0.5, np.inf, -np.inf, np.nan, 5e-324, 1e-45, 6e-8, 1e308]


@np.errstate(all="ignore")
def values_of(kind: str, dtype: str, n: int, rng: np.random.Generator) -> np.ndarray:
    """Make `n` random items of one kind."""
    any_bits = np.frombuffer(rng.bytes(n * np.dtype(dtype).itemsize), dtype)
    if kind == "extremes":
        if dtype[0] == "f":
            return rng.choice(np.array(SPECIAL, "f8").astype(dtype), n)
        limits = np.iinfo(dtype)
        few = [limits.min, limits.max, limits.max - 1, limits.max // 2, 0, 1]
        return np.array(few, dtype)[rng.integers(0, len(few), n)]
    largest = rng.choice([2, 9, 300, 70_000])
    made = {
        "bits": lambda: any_bits,
        "constant": lambda: np.repeat(any_bits[:1], n),
        "rising": lambda: np.sort(any_bits),
        "falling": lambda: np.sort(any_bits)[::-1],
        "few": lambda: np.resize(any_bits[:40], n)[rng.permutation(n)],
        "counts": lambda: rng.negative_binomial(1, 0.4, n),
        # In narrow types the last of them wrap.
        "gaps": lambda: np.cumsum(rng.integers(1, largest, n)) - 1,
        "offsets": lambda: rng.integers(-largest, largest, n) + rng.integers(-1_000, 1_000),
    }[kind]()
    return made.astype(dtype)


@st.composite
def items(draw: st.DrawFn, types: list[str] = TYPES, most: int = 5_000) -> np.ndarray:
    """Items whose parts may be of different kinds."""
    dtype = draw(st.sampled_from(types))
    rng = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    n = draw(st.one_of(st.integers(0, most), st.sampled_from([n for n in EDGES if n <= most])))
    kinds = draw(st.lists(st.sampled_from(KINDS), min_size=1, max_size=4))
    cuts = np.sort(rng.integers(0, n + 1, len(kinds) - 1))
    lengths = np.diff(cuts, prepend=0, append=n).tolist()
    parts = [values_of(kind, dtype, k, rng) for kind, k in zip(kinds, lengths, strict=True)]
    return np.concatenate(parts)


@st.composite
def ends_of_rows(draw: st.DrawFn, n: int) -> np.ndarray | None:
    rng = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    ends = np.sort(rng.integers(0, n + 1, draw(st.integers(0, 80))))
    return draw(st.sampled_from([None, ends, np.append(ends, n)]))


def decoded(data: bytes, dtype: Any, n: int) -> np.ndarray:
    """What the codec decodes; nothing beside that may change."""
    guarded = np.full((3, n), 77).astype(dtype)
    packed.Packed.decode(data, guarded[1])
    assert (guarded[[0, 2]] == guarded.dtype.type(77)).all()
    return guarded[1]


GUARDED = GuardedMemory()


def stored(chunks: list[bytes]) -> Content:
    owners = [np.frombuffer(chunk, np.uint8) for chunk in chunks]
    addresses = np.array([owner.ctypes.data for owner in owners], np.int64)
    return Content(addresses, np.array([len(owner) for owner in owners], np.int64), owners)


def read_part(
    content: Content, of: int, start: int, n: int, dtype: Any, bound: Bound | None = None
) -> Any:
    """Read items of the only chunk, which has `of` items; DamagedChunkError."""
    out = np.zeros(n, dtype)
    chain = Chain.of(CODECS, np.dtype(dtype))
    assert chain is not None
    pieces = tuple(np.array(part) for part in ([0, 1], [start], [0], [n]))
    assert chain.place(content, pieces, of, bound or Bound.of(), out) == -1
    return out


def small_chunk(dtype: str) -> tuple[np.ndarray, bytes]:
    """Three frames of different kinds, of which the one in the middle will be read."""
    rng = np.random.default_rng(1)
    kinds = ["bits", "few", "counts"] if dtype[0] == "f" else ["offsets", "gaps", "bits"]
    values = np.concatenate([values_of(kind, dtype, 128, rng) for kind in kinds])
    return values, encode(values, np.array([128, 256, 384]))
