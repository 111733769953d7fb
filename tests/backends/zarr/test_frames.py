"""The codec scdl.packed against a second reader, which was written from its page."""

from __future__ import annotations

import numpy as np
import packed_reader as reader
from budget import examples
from hypothesis import given, settings
from hypothesis import strategies as st
from packed_chunks import KINDS, TYPES, decoded, ends_of_rows, items, read_part, stored, values_of

from storage_backends.zarr.codecs import blosc, packed
from storage_backends.zarr.codecs.frame_writing import encode, encode_chunks
from storage_backends.zarr.plan import Bound


@given(data=st.data())
@settings(max_examples=examples(40), deadline=None)
def test_chunks_encoded_together(data: st.DataObject) -> None:
    """They are the chunks that are encoded one by one."""
    values = data.draw(items())
    ends = data.draw(ends_of_rows(len(values)))
    length = 1 << data.draw(st.integers(10, 13))
    together, sizes = encode_chunks(values, length, ends)
    expected = []
    for start in range(0, max(len(values), 1), length):
        within = None if ends is None else ends - start
        expected.append(encode(values[start : start + length], within))
    assert sizes == [len(chunk) for chunk in expected]
    assert together == b"".join(expected)


@given(st.data())
@settings(max_examples=examples(400))
def test_both_readers_return_what_was_written(data: st.DataObject) -> None:
    values = data.draw(items())
    chunk = encode(values, data.draw(ends_of_rows(len(values))))
    expected = values.tobytes()
    assert reader.decode(chunk, values.dtype).tobytes() == expected
    assert decoded(chunk, values.dtype, len(values)).tobytes() == expected
    assert (
        read_part(stored([chunk]), len(values), 0, len(values), values.dtype).tobytes() == expected
    )


def test_writers_use_every_kind_of_frame() -> None:
    """Otherwise the test above would say less than it seems to."""
    rng, found = np.random.default_rng(0), set()
    for dtype in TYPES:
        for kind in KINDS:
            chunk = encode(values_of(kind, dtype, 1_000, rng))
            found |= {frame.content[0] for frame in reader.frames(chunk)}
    assert found == {0, 8, 1, 9, 2, 3}


@given(items(), st.data())
def test_frames_end_where_rows_end(values: np.ndarray, data: st.DataObject) -> None:
    ends = data.draw(ends_of_rows(len(values)))
    found = reader.frames(encode(values, ends))
    edges = [frame.first + frame.n for frame in found]
    assert edges[-1:] == [len(values)][: len(values)]
    if ends is not None and len(found) > 1 and np.diff(ends, prepend=0).max() <= 4_096:
        assert set(edges[:-1]) <= set(ends.tolist())


@st.composite
def pieces_of(draw: st.DrawFn, lengths: list[int]) -> tuple[np.ndarray, ...]:
    """Any pieces of each chunk, one or more of each, which go anywhere in the output."""
    n_pieces = [draw(st.integers(1, 5)) for _ in lengths]
    rng = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    of = np.repeat(lengths, n_pieces)
    sources = rng.integers(0, of + 1)
    counts = rng.integers(0, of - sources + 1)
    # Gaps of an item, which has to stay as it is.
    order = rng.permutation(len(of))
    targets = np.empty(len(of), np.int64)
    targets[order] = np.cumsum(counts[order] + 1) - counts[order]
    return np.append(0, np.cumsum(n_pieces)), sources, targets, counts


def expected_of(chunks: list[np.ndarray], pieces: tuple[np.ndarray, ...], out: np.ndarray) -> None:
    bounds, sources, targets, lengths = pieces
    for row, chunk in enumerate(chunks):
        for k in range(bounds[row], bounds[row + 1]):
            part = chunk[sources[k] : sources[k] + lengths[k]]
            out[targets[k] : targets[k] + lengths[k]] = part


@given(st.data())
@settings(max_examples=examples(300))
def test_pieces_of_several_chunks(data: st.DataObject) -> None:
    dtype = data.draw(st.sampled_from(TYPES))
    values = data.draw(items([dtype], 6_000))
    # Chunks of one length.
    n = len(values) // data.draw(st.integers(1, 4))
    arrays = [values[i : i + n] for i in range(0, len(values) - n + 1, max(n, 1))][:4]
    chunks = [encode(values, data.draw(ends_of_rows(len(values)))) for values in arrays]
    pieces = data.draw(pieces_of([len(values) for values in arrays]))
    wider = [dtype[0] + size for size in "1248" if size >= dtype[1]] if dtype[0] != "f" else [dtype]
    n_out = int((pieces[3] + 1).sum()) + 1
    out = np.full(n_out, 77).astype(data.draw(st.sampled_from(wider)))
    expected = out.copy()
    expected_of([reader.decode(chunk, dtype) for chunk in chunks], pieces, expected)
    found = packed.place(stored(chunks), pieces, n, np.dtype(dtype), Bound.of(), out)
    assert found == blosc.SOUND
    assert out.tobytes() == expected.tobytes()


@given(st.data())
@settings(max_examples=examples(200))
def test_pieces_of_ids_with_a_mapping(data: st.DataObject) -> None:
    dtype = data.draw(st.sampled_from(["u1", "u2", "u4"]))
    rng = np.random.default_rng(data.draw(st.integers(0, 2**32 - 1)))
    n_genes = data.draw(st.integers(1, 256 if dtype == "u1" else 3_000))
    n = int(rng.integers(1, 900))
    arrays = [rng.integers(0, n_genes, n).astype(dtype) for _ in range(3)]
    rows = [rng.integers(0, 200, 20).cumsum() for _ in arrays]
    chunks = [encode(values, ends) for values, ends in zip(arrays, rows, strict=True)]
    pieces = data.draw(pieces_of([len(values) for values in arrays]))
    mapping = rng.permutation(n_genes).astype(np.uint32)
    out = np.full(int((pieces[3] + 1).sum()) + 1, n_genes + 1, np.uint32)
    expected = out.copy()
    expected_of([mapping[values] for values in arrays], pieces, expected)
    bound = Bound.of(n_genes, mapping)
    assert packed.place(stored(chunks), pieces, n, np.dtype(dtype), bound, out) == blosc.SOUND
    np.testing.assert_array_equal(out, expected)
    # One gene less: those that hold the last are out of bounds.
    lengths = np.array([len(values) for values in arrays])
    whole = np.arange(4), np.zeros(3, np.int64), np.cumsum(lengths) - lengths, lengths
    beyond = [row for row, values in enumerate(arrays) if values.max() == n_genes - 1]
    out = np.empty(lengths.sum(), np.uint32)
    if n_genes > 1 and beyond:
        less = Bound.of(n_genes - 1)
        found = packed.place(stored(chunks), whole, n, np.dtype(dtype), less, out)
        assert found == beyond[0]
