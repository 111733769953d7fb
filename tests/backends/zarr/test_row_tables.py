"""Pieces of the codec scdl.of against a second reader, which was written from its page."""

from __future__ import annotations

from itertools import product
from typing import Any

import numpy as np
import pytest
import tables_reader as reader
from budget import WHOLE, examples
from hypothesis import given, settings
from hypothesis import strategies as st
from packed_chunks import GUARDED, KINDS, TYPES, UPGRADE, values_of

from storage_backends.directory.content import checksum
from storage_backends.zarr.chunks.row_ends import RowEnds
from storage_backends.zarr.codecs import row_tables
from storage_backends.zarr.codecs.chunk_errors import DamagedChunkError

#: Types of numbers, and of those that they follow from: each width, as code is compiled for pairs.
PAIRS = [("u1", "i8"), ("f2", "u1"), ("f4", "u2"), ("i8", "f4")]
PAIRS = [*product(TYPES, TYPES)] if WHOLE else PAIRS


@st.composite
def cases(draw: st.DrawFn, most: int = 2_000) -> tuple[np.ndarray, np.ndarray, Any]:
    """Numbers of any type, those that follow from them in each row, and the ends of the rows."""
    dtype, other = draw(st.sampled_from(PAIRS))
    rng = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    n = draw(st.integers(1, most))
    others = values_of(draw(st.sampled_from(KINDS)), other, n, rng)
    ends = np.unique(rng.integers(1, n + 1, draw(st.integers(0, 30))))
    ends = np.concatenate([[-5], ends[ends < n], [n + 3]])
    values = np.empty(n, dtype)
    for start, stop in zip(np.maximum(ends[:-1], 0), np.minimum(ends[1:], n), strict=True):
        _, place = np.unique(others[start:stop].view(f"u{others.itemsize}"), return_inverse=True)
        table = values_of(draw(st.sampled_from(KINDS)), dtype, place.max() + 1, rng)
        values[start:stop] = table[place]
    return values, others, ends


def decoded(piece: bytes, others: np.ndarray, dtype: Any, needed: int | None = None) -> Any:
    """The items of a piece, or the position and problem of a damaged one."""
    n = len(others)
    guarded = np.full((3, n), 77).astype(dtype)
    wanted = np.array([n if needed is None else needed])
    try:
        row_tables.decode(
            GUARDED.content(piece), wanted, np.array([n]), others.reshape(1, -1), guarded[1:2]
        )
    except DamagedChunkError as error:
        return error.position, str(error)
    finally:
        assert (guarded[[0, 2]] == guarded.dtype.type(77)).all()
    return guarded[1, : wanted[0]]


@given(cases(), st.data())
@settings(max_examples=examples(400))
def test_there_and_back(case: Any, data: st.DataObject) -> None:
    values, others, ends = case
    piece = row_tables.encode(values, others, ends)
    assert piece is not None
    assert reader.decode(piece, values.dtype, others).tobytes() == values.tobytes()
    needed = data.draw(st.integers(0, len(values)))
    assert decoded(piece, others, values.dtype, needed).tobytes() == values[:needed].tobytes()
    # Any other type that tells the numbers apart gives the same.
    _, ranks = np.unique(others.view(f"u{others.itemsize}"), return_inverse=True)
    assert decoded(piece, ranks.astype("u2"), values.dtype).tobytes() == values.tobytes()


@given(cases())
@settings(max_examples=examples(200))
def test_only_what_follows_is_encoded(case: Any) -> None:
    """One item is changed in all of its bits, where its number occurs again in the row."""
    values, others, ends = case
    bits, numbers = (each.view(f"u{each.itemsize}") for each in (values, others))
    last = max(0, int(ends[-2]))
    repeated = np.flatnonzero(numbers[last:] == numbers[-1])
    bits[-1] ^= bits.dtype.type(~bits.dtype.type(0))
    expected = None if len(repeated) > 1 else values.tobytes()
    piece = row_tables.encode(values, others, ends)
    found = piece and reader.decode(piece, values.dtype, others).tobytes()
    assert found == expected


@given(cases(300), st.data())
@settings(max_examples=examples(600))
def test_hostile_pieces(case: Any, data: st.DataObject) -> None:
    """Bytes are changed under a right checksum: both readers refuse, or return the same."""
    values, others, ends = case
    changed = bytearray(row_tables.encode(values, others, ends)[:-4])  # type: ignore[index]
    for _ in range(data.draw(st.integers(0, 3))):
        last = len(changed) - 1
        at = data.draw(st.integers(0, min(24, last)) | st.integers(0, last))
        changed[at] = data.draw(st.integers(0, 255))
    data_ = bytes(changed[: data.draw(st.just(len(changed)) | st.integers(0, len(changed)))])
    data_ += data.draw(st.just(b"") | st.binary(max_size=9))
    piece = data_ + checksum(data_)
    try:
        expected = reader.decode(piece, values.dtype, others)
    except ValueError:
        assert isinstance(decoded(piece, others, values.dtype), tuple)
        return
    assert decoded(piece, others, values.dtype).tobytes() == expected.tobytes()


def small() -> tuple[np.ndarray, np.ndarray, bytes]:
    others = np.resize(np.arange(1, 8, dtype="u2"), 50)
    values = np.log1p(others.astype("f4"))
    piece = row_tables.encode(values, others, np.array([0, 20, 50]))
    assert piece is not None
    return values, others, piece


def test_every_flipped_bit_is_found() -> None:
    _, others, piece = small()
    for position in range(8 * len(piece)):
        flipped = bytearray(piece)
        flipped[position >> 3] ^= 1 << (position & 7)
        assert decoded(bytes(flipped), others, "f4") == (0, "its checksum is wrong")


def test_pieces_that_end_early() -> None:
    _, others, piece = small()
    for length in range(len(piece) - 4):
        assert decoded(piece[:length], others, "f4")[0] == 0
        sealed = piece[:length] + checksum(piece[:length])
        assert decoded(sealed, others, "f4") == (0, "its content is invalid")
    told = "its content is invalid", f"scdl.of: its format is 2, {UPGRADE}"
    for version, problem in zip((0, 2), told, strict=True):
        sealed = bytes([version]) + piece[1:-4]
        assert decoded(sealed + checksum(sealed), others, "f4") == (0, problem)


def test_memory_is_in_proportion_to_the_bytes() -> None:
    """Rows claim more entries than there are bytes."""
    most = b"\x80\x80\x80\x80\x80\x40"
    others = np.zeros(9, "u2")
    for head in (most, b"\1" + most + most, b"\1\x09\x09"):
        data = b"\1" + head
        assert decoded(data + checksum(data), others, "f4") == (0, "its content is invalid")


def test_numbers_that_collide() -> None:
    """All of a row are hashed to one place, of which some are tried: it is not encoded."""
    inverse = pow(0x9E3779B97F4A7C15, -1, 2**64)
    others = np.array([k * inverse % 2**64 for k in range(400)], "u8")
    assert row_tables.encode(others, others, None) is None
    few = others[:200]
    piece = row_tables.encode(few, few, None)
    assert piece is not None
    assert decoded(piece, few, "u8").tobytes() == few.tobytes()
    data = piece[:-4].replace(b"\1\1\xc8\1\xc8\1", b"\1\1\x90\3\x90\3") + others[200:].tobytes()
    assert decoded(data + checksum(data), others, "u8") == (0, "its content is invalid")


def test_rows_that_are_known_in_parts() -> None:
    rows = RowEnds()
    rows.extend(np.array([3, 10, 25]))
    values = np.arange(25, dtype="f8")
    for start, stop in ((0, 5), (5, 12), (12, 25)):
        part = values[start:stop]
        piece = row_tables.encode(part, part.astype("u1"), rows.within(start, stop))
        assert piece is not None
        assert reader.decode(piece, part.dtype, part).tobytes() == part.tobytes()


@pytest.mark.parametrize("n", [1, 2])
def test_the_smallest_pieces(n: int) -> None:
    values = np.full(n, np.nan, "f2")
    piece = row_tables.encode(values, np.zeros(n), None)
    assert piece is not None
    assert piece[:-4] == bytes([1, 1, n, 1]) + values[:1].tobytes()
