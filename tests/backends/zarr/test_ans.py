"""The codec scdl.ans against a second reader, which was written from its page."""

from __future__ import annotations

from typing import Any

import ans_reader as reader
import numpy as np
import pytest
from budget import examples
from hostile import bounded
from hypothesis import given, settings
from hypothesis import strategies as st
from packed_chunks import GUARDED, INTEGERS, UPGRADE, items, stored, values_of

from storage_backends.directory.content import checksum
from storage_backends.errors import ArchiveFormatError
from storage_backends.zarr.chunks.row_ends import RowEnds
from storage_backends.zarr.codecs import ans_fitting
from storage_backends.zarr.codecs.ans import Ans
from storage_backends.zarr.codecs.ans_format import MOST_TABLES, N_STATES, Tables
from storage_backends.zarr.codecs.chain import Chain
from storage_backends.zarr.codecs.chunk_errors import DamagedChunkError, NewerChunkError


def fitted(values: np.ndarray, ends: np.ndarray, *, differences: bool) -> Ans:
    tables = ans_fitting.fit(values, ends, len(values), differences=differences)
    return Ans(tables.to_text(), differences)


def chain_of(codec: Ans, dtype: Any) -> Chain:
    chain = Chain.of([codec.to_dict(), {"name": "crc32c"}], np.dtype(dtype))
    assert chain is not None
    return chain


def decoded(codec: Ans, chunk: bytes, dtype: Any, n: int, needed: int | None = None) -> np.ndarray:
    """What the codec decodes of a chunk without checksum; nothing beside that may change."""
    guarded = np.full((3, n), 77).astype(dtype)
    content = GUARDED.content(chunk + checksum(chunk))
    wanted = np.array([n if needed is None else needed])
    chain_of(codec, dtype).decode(content, wanted, guarded[1:2])
    assert (guarded[[0, 2]] == guarded.dtype.type(77)).all()
    return guarded[1]


@st.composite
def rows(draw: st.DrawFn, n: int) -> np.ndarray | None:
    """Ends of rows of a chunk of `n` items, with those around it; some are of no item."""
    rng = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    inner = np.sort(rng.integers(1, max(n, 2), draw(st.integers(0, 40))))
    before = draw(st.sampled_from([0, -1, -300, -(2**40)]))
    after = n + draw(st.sampled_from([0, 1, 300, 2**40]))
    ends = np.concatenate([[before], inner[inner < n], [after]])
    return draw(st.sampled_from([None, ends, np.append(ends, after + 5)]))


@st.composite
def cases(draw: st.DrawFn, most: int = 3_000) -> tuple[np.ndarray, np.ndarray | None, Ans]:
    """Items, their rows, and tables that were fitted to these items or to others."""
    values = draw(items(INTEGERS, most))
    ends, differences = draw(rows(len(values))), draw(st.booleans())
    sample = draw(st.sampled_from([values, np.arange(3, dtype=values.dtype)]))
    return values, ends, fitted(sample, np.array([len(sample)]), differences=differences)


@given(cases(), st.data())
@settings(max_examples=examples(300))
def test_both_readers_return_what_was_written(case: Any, data: st.DataObject) -> None:
    values, ends, codec = case
    n, dtype = len(values), values.dtype
    chunk = codec.encode(values, ends)
    expected = reader.decode(chunk, codec.text, dtype, n, differences=codec.differences)
    assert expected.tobytes() == values.tobytes()
    assert decoded(codec, chunk, dtype, n).tobytes() == values.tobytes()
    needed = data.draw(st.integers(0, n))
    assert decoded(codec, chunk, dtype, n, needed)[:needed].tobytes() == values[:needed].tobytes()


@given(st.integers(1, 900), st.integers(0, 900), st.booleans(), st.sampled_from(["u1", "u2", "i8"]))
def test_items_behind_the_last_row_take_little(
    n: int, n_filled: int, differences: bool, dtype: str
) -> None:
    values = np.arange(n).astype(dtype)
    codec = fitted(values, np.array([n]), differences=differences)
    whole = np.concatenate([values, np.repeat(values[-1:], n_filled)])
    chunk = codec.encode(whole, np.array([0, n]))
    expected = reader.decode(chunk, codec.text, dtype, len(whole), differences=differences)
    assert expected[:n].tobytes() == values.tobytes()
    assert decoded(codec, chunk, dtype, len(whole)).tobytes() == expected.tobytes()
    most = 3 + n_filled * (1.25 if dtype == "u1" or not differences else 0.1)
    assert len(chunk) - len(codec.encode(values, np.array([0, n]))) <= most


def test_chunks_of_different_rows_decode_together() -> None:
    rng = np.random.default_rng(0)
    values = [np.sort(rng.integers(0, 60_000, 5_000)).astype("u2") for _ in range(5)]
    codec = fitted(values[0], np.array([5_000]), differences=True)
    chain = chain_of(codec, "u2")
    ends = np.array([-9, 70, 71, 2_000, 5_001])
    out = np.zeros((5, 5_000), "u2")
    chain.decode(stored([chain.encode(v, ends) for v in values]), np.full(5, 5_000), out)
    np.testing.assert_array_equal(out, values)


def test_tables_know_places_and_lengths_of_rows() -> None:
    """Values that fall along the row, and that are larger in long rows, take few bits."""
    rng = np.random.default_rng(0)
    lengths = rng.choice([200, 2_000], 60)
    places = np.concatenate([np.arange(n) / n for n in lengths])
    means = 8 * np.repeat(lengths / 200, lengths) * (1 - places) ** 4 + 0.01
    values = (1 + rng.poisson(means)).astype("u2")
    ends = np.cumsum(lengths)
    codec = fitted(values, ends, differences=False)
    with_rows = codec.encode(values, np.append(0, ends))
    one_table = Tables.from_text(codec.text)
    assert len(one_table.weights) > 1
    order_0 = np.bincount(values) / len(values)
    order_0 = order_0[order_0 > 0]
    entropy = -(order_0 * np.log2(order_0)).sum() * len(values) / 8
    assert len(with_rows) < 0.75 * entropy
    assert len(codec.encode(values)) > 1.2 * len(with_rows)


@pytest.mark.parametrize("pieces", [1, 3, 50])
def test_ends_of_rows_around_a_chunk(pieces: int) -> None:
    rng = np.random.default_rng(pieces)
    ends = np.cumsum(rng.integers(0, 9, 200))
    known = RowEnds()
    for part in np.array_split(ends, pieces):
        known.extend(part)
    edges = np.append(0, ends)
    for start in range(0, int(ends[-1]), 17):
        stop = min(start + 17, int(ends[-1]))
        found = known.within(start, stop)
        assert found is not None
        inner = edges[(edges > start) & (edges < stop)] - start
        np.testing.assert_array_equal(found[(found > 0) & (found < stop - start)], inner)
        assert found[found <= 0].max() == edges[edges <= start].max() - start
        assert found[found >= stop - start].min() == edges[edges >= stop].min() - start
    assert known.within(int(ends[-1]), int(ends[-1]) + 1) is None


def small() -> tuple[np.ndarray, bytes, Ans]:
    rng = np.random.default_rng(1)
    values = np.concatenate([np.sort(rng.choice(900, n, replace=False)) for n in (70, 200, 30)])
    ends = np.array([-40, 70, 270, 300])
    codec = fitted(values.astype("u2"), ends[1:], differences=True)
    return values.astype("u2"), codec.encode(values.astype("u2"), ends), codec


def test_every_flipped_bit_is_found() -> None:
    values, chunk, codec = small()
    sealed = chunk + checksum(chunk)
    chain, out = chain_of(codec, "u2"), np.empty((1, len(values)), "u2")
    for position in range(8 * len(sealed)):
        flipped = bytearray(sealed)
        flipped[position >> 3] ^= 1 << (position & 7)
        with pytest.raises(DamagedChunkError, match="checksum"):
            chain.decode(GUARDED.content(bytes(flipped)), np.array([1]), out)


def test_chunks_that_end_early() -> None:
    values, chunk, codec = small()
    for length in range(len(chunk)):
        with pytest.raises(DamagedChunkError):
            decoded(codec, chunk[:length], "u2", len(values))
        with pytest.raises(ArchiveFormatError):
            codec.decode_one(chunk[:length], np.empty(len(values), "u2"))
    with pytest.raises(DamagedChunkError, match="content"):
        decoded(codec, chunk + b"\0", "u2", len(values))
    with pytest.raises(NewerChunkError, match=f"ans: its format is 2, {UPGRADE}"):
        decoded(codec, b"\x02" + chunk[1:], "u2", len(values))
    with pytest.raises(DamagedChunkError, match="content"):
        decoded(codec, b"\x00" + chunk[1:], "u2", len(values))
    for n in (1, len(values) - 31, len(values) + 1):
        with pytest.raises(DamagedChunkError, match="content"):
            decoded(codec, chunk, "u2", n)


@given(cases(600), st.data())
@settings(max_examples=examples(600))
def test_hostile_chunks(case: Any, data: st.DataObject) -> None:
    """Bytes are changed under a right checksum: both readers refuse, or return the same."""
    values, ends, codec = case
    changed = bytearray(codec.encode(values, ends))
    for _ in range(data.draw(st.integers(1, 3))):
        # Most of what matters is at the beginning.
        last = len(changed) - 1
        at = data.draw(st.integers(0, min(24, last)) | st.integers(0, last))
        changed[at] = data.draw(st.integers(0, 255))
    chunk = bytes(changed[: data.draw(st.just(len(changed)) | st.integers(0, len(changed)))])
    chunk += data.draw(st.just(b"") | st.binary(max_size=9))
    n, dtype = len(values), values.dtype
    try:
        expected = reader.decode(chunk, codec.text, dtype, n, differences=codec.differences)
    except ValueError:
        with pytest.raises(DamagedChunkError):
            decoded(codec, chunk, dtype, n)
        return
    assert decoded(codec, chunk, dtype, n).tobytes() == expected.tobytes()


SEVENS_OF_2_41 = b"\x80\x80\x80\x80\x80\x40"


@pytest.mark.parametrize(
    "head",
    {
        "no row": b"\0\0",
        "rows beyond the chunk": b"\x7f\0" + b"\1" * 20,
        "a row of no items": b"\2\0\0\3",
        "a row too many": b"\2\0\3\1",
        "a row that ended before": b"\2\5\5\3",
        "items without a row": b"\1\0\2",
        "the most rows": SEVENS_OF_2_41 + b"\0\1\1",
        "all items before": b"\1" + SEVENS_OF_2_41 + b"\3",
        "a number of seven bytes": b"\1\0\x80\x80\x80\x80\x80\x80\1",
        "a number that does not end": b"\1\0" + b"\xff" * 40,
    }.values(),
)
def test_hostile_rows(head: bytes) -> None:
    _, _, codec = small()
    chunk = b"\1" + head + bytes(16) + bytes(90)
    with bounded(mebibytes=16), pytest.raises(DamagedChunkError, match="content"):
        decoded(codec, chunk, "u2", 3)
    with pytest.raises(ValueError, match=r"."):
        reader.decode(chunk, codec.text, "u2", 3, differences=True)


def test_long_rows_that_are_in_many_chunks() -> None:
    values = np.arange(5, dtype="u4")
    codec = fitted(values, np.array([5]), differences=True)
    for before in (0, 2**40):
        chunk = codec.encode(values, np.array([-before, 2**41]))
        assert decoded(codec, chunk, "u4", 5).tobytes() == values.tobytes()


def text(change: Any = None, n: int = 2) -> str:
    contexts, weights = np.zeros(42 * 32, np.uint8), np.zeros((n, 41), np.uint16)
    weights[:, 40], weights[:, 0] = 24, N_STATES - 24
    if change is not None:
        change(contexts, weights)
    return Tables(contexts, weights).to_text()


def set_to(which: int, at: Any, value: int) -> Any:
    def change(*arrays: np.ndarray) -> None:
        arrays[which][at] = value

    return change


@pytest.mark.parametrize(
    ("settings", "problem"),
    [
        ({}, "has tables and differences"),
        ({"tables": text()}, "has tables and differences"),
        ({"tables": text(), "differences": False, "level": 1}, "has tables and differences"),
        ({"tables": text(), "differences": 1}, "differences a boolean"),
        ({"tables": 3, "differences": True}, "are text"),
        ({"tables": "é", "differences": True}, "damaged"),
        ({"tables": "AAA", "differences": True}, "damaged"),
        ({"tables": "AAAA", "differences": True}, "damaged"),
        ({"tables": text()[:20], "differences": True}, "damaged|incomplete"),
        ({"tables": text(n=0), "differences": True}, "incomplete"),
        ({"tables": text(set_to(0, 7, 2)), "differences": True}, "invalid"),
        ({"tables": text(set_to(1, (1, 3), 1)), "differences": True}, "invalid"),
        ({"tables": text(set_to(1, (1, 0), 65_535)), "differences": True}, "invalid"),
        ({"tables": text(set_to(1, (1, [0, 40]), [1_024, 0])), "differences": True}, "invalid"),
        ({"tables": text(n=MOST_TABLES + 1), "differences": True}, "more than 64"),
    ],
)
def test_invalid_tables(settings: dict[str, Any], problem: str) -> None:
    with pytest.raises(ValueError, match=problem):
        Ans.of(settings)
    codecs = [{"name": "scdl.ans", "configuration": settings}, {"name": "crc32c"}]
    assert Chain.of(codecs, np.dtype("u2")) is None


def test_tables_that_decompress_to_much() -> None:
    import base64
    import zlib

    bomb = base64.b64encode(zlib.compress(bytes(1 << 28), 9)).decode()
    with bounded(mebibytes=16), pytest.raises(ValueError, match="more than 64"):
        Ans.of({"tables": bomb, "differences": False})


def test_chains_without_a_checksum() -> None:
    codec = Ans(text(), False).to_dict()
    u2 = np.dtype("u2")
    assert Chain.of([codec, {"name": "crc32c"}], u2) is not None
    assert Chain.of([codec], u2) is None
    delta = {"name": "numcodecs.delta", "configuration": {"dtype": "<u2"}}
    assert Chain.of([delta, codec, {"name": "crc32c"}], u2) is None
    zstd = {"name": "zstd", "configuration": {"level": 1}}
    assert Chain.of([codec, zstd, {"name": "crc32c"}], u2) is None


@pytest.mark.parametrize("kind", ["bits", "counts"])
def test_floats_are_refused(kind: str) -> None:
    values = values_of(kind, "f4", 9, np.random.default_rng(0))
    with pytest.raises(ValueError, match="stores integers, not float32"):
        Ans(text(), False).encode(values)
    with pytest.raises(ArchiveFormatError, match="stores integers, not float32"):
        Ans(text(), False).decode_one(b"", values)
