"""Damaged and hostile chunks of the codec scdl.packed, against a second reader."""

from __future__ import annotations

import struct

import numpy as np
import packed_reader as reader
import pytest
from budget import examples
from hostile import bounded
from hypothesis import given, settings
from hypothesis import strategies as st
from packed_chunks import (
    CODECS,
    GUARDED,
    TYPES,
    UPGRADE,
    decoded,
    ends_of_rows,
    items,
    read_part,
    small_chunk,
    stored,
)

from storage_backends.directory.content import checksum
from storage_backends.errors import ArchiveFormatError, NewerFormatError
from storage_backends.zarr.codecs import blosc, packed
from storage_backends.zarr.codecs.chain import Chain
from storage_backends.zarr.codecs.chunk_errors import DamagedChunkError
from storage_backends.zarr.codecs.frame_writing import encode
from storage_backends.zarr.plan import Bound


def reseal(chunk: bytes) -> list[tuple[int, bytes]]:
    """The frames of a chunk in the form that :func:`packed_reader.seal` takes."""
    return [(frame.n, frame.content[:-4]) for frame in reader.frames(chunk)]


def frame(kind: int, width: int, numbers: list[int], head: bytes = b"") -> tuple[int, bytes]:
    """A frame of at most 32 numbers of one width, which takes a byte."""
    bits = sum(number << (width * k) for k, number in enumerate(numbers))
    body = bits.to_bytes((width * len(numbers) + 7) // 8, "little")
    return len(numbers), bytes([kind | 8]) + head + bytes([width]) + body


@pytest.mark.parametrize("dtype", ["u2", "f4"])
def test_every_flipped_bit_is_found_where_it_is_read(dtype: str) -> None:
    values, chunk = small_chunk(dtype)
    first, middle, last = reader.frames(chunk)
    begin, end = len(first.content), len(first.content) + len(middle.content)
    read = {*range(begin, end), *range(end + len(last.content), len(chunk))}
    assert len(read) == len(middle.content) + 24
    expected, n = values[140:240].tobytes(), len(values)
    for position in range(len(chunk)):
        for bit in range(8):
            flipped = bytearray(chunk)
            flipped[position] ^= 1 << bit
            content = GUARDED.content(bytes(flipped))
            if position in read:
                with pytest.raises(DamagedChunkError):
                    read_part(content, n, 140, 100, dtype)
            else:
                assert read_part(content, n, 140, 100, dtype).tobytes() == expected
            with pytest.raises(ArchiveFormatError):
                decoded(bytes(flipped), dtype, n)


@pytest.mark.parametrize("dtype", ["u2", "f4"])
def test_chunks_that_end_early(dtype: str) -> None:
    values, chunk = small_chunk(dtype)
    for length in range(len(chunk)):
        for n in (0, 100):
            with pytest.raises(DamagedChunkError):
                read_part(GUARDED.content(chunk[:length]), len(values), 140, n, dtype)
        with pytest.raises(ArchiveFormatError):
            decoded(chunk[:length], dtype, len(values))
        with pytest.raises(ValueError, match=r"bytes|tail"):
            reader.decode(chunk[:length], dtype)


def agree(chunk: bytes, dtype: str, n: int) -> None:
    """Check that the codec refuses what the page refuses, and otherwise decodes the same."""
    try:
        expected = reader.decode(chunk, dtype)
        reason = "" if len(expected) == n else "other number of items"
    except ValueError as error:
        reason = str(error)
    try:
        found = read_part(GUARDED.content(chunk), n, 0, n, dtype)
    except DamagedChunkError:
        assert reason
        return
    if not reason:
        assert found.tobytes() == expected[:n].tobytes()
    # Filler that is not zero does no harm.
    assert reason in ("", reader.FILLED), reason


@given(items(TYPES, 600), st.data())
@settings(max_examples=examples(600))
def test_hostile_bodies(values: np.ndarray, data: st.DataObject) -> None:
    """The bytes of one frame are changed, and all checksums are right."""
    n = len(values)
    parts = reseal(encode(values, data.draw(ends_of_rows(n)))) or [(1, b"\x03")]
    which = data.draw(st.integers(0, len(parts) - 1))
    n_items, content = parts[which]
    changed = bytearray(content)
    for _ in range(data.draw(st.integers(1, 3))):
        # Most of what matters is at the beginning.
        at = data.draw(st.integers(0, min(8, len(changed) - 1)) | st.integers(0, len(changed) - 1))
        changed[at] = data.draw(st.integers(0, 255))
    changed = changed[: data.draw(st.just(len(changed)) | st.integers(0, len(changed)))]
    changed += data.draw(st.just(b"") | st.binary(max_size=9))
    parts[which] = n_items, bytes(changed)
    agree(reader.seal(parts), values.dtype.str[1:], max(n, 1))


@given(st.sampled_from(TYPES), st.data())
@settings(max_examples=examples(600))
def test_random_bytes_with_right_checksums(dtype: str, data: st.DataObject) -> None:
    n_items = st.sampled_from([1, 2, 31, 32, 33, 100, 4_096])
    kind = st.sampled_from([0, 1, 2, 3, 8, 9, 10, 11]) | st.integers(0, 255)
    body = st.tuples(kind, st.binary(max_size=60)).map(lambda p: bytes([p[0]]) + p[1])
    parts = data.draw(st.lists(st.tuples(n_items, body), min_size=1, max_size=3))
    agree(reader.seal(parts), dtype, sum(n for n, _ in parts))


@given(st.data())
@settings(max_examples=examples(300))
def test_hostile_directories(data: st.DataObject) -> None:
    """Entries are changed or missing; no item that is read may be another frame's."""
    values, chunk = small_chunk("u2")
    parts = reseal(chunk)
    sealed = reader.seal(parts)
    number = st.sampled_from([0, 1, 4, 5, 128, 4_096, 4_097, 65_535]) | st.integers(0, 400)
    entry = st.tuples(number, number)
    entries = [(f.n, len(f.content)) for f in reader.frames(sealed)]
    entries[data.draw(st.integers(0, 2))] = data.draw(entry)
    entries = entries[: data.draw(st.integers(0, 3))]
    entries += data.draw(st.lists(entry, max_size=3))
    n_frames = data.draw(st.just(len(entries)) | st.integers(0, 2**32 - 1))
    tail = np.array(entries, "<u2").tobytes() + struct.pack("<I", n_frames) + reader.MAGIC
    changed = sealed[:-24] + tail + checksum(tail)
    with bounded(mebibytes=16):
        agree(changed, "u2", len(values))


UNSOUND = {
    "widths beyond the frame": ("u2", (64, b"\x00")),
    "a width of 255": ("u4", (4, b"\x08\xff" + bytes(200))),
    "a width of 41 bits in kind 0": ("u8", frame(0, 41, [1, 2])),
    "a width of 17 bits in kind 2": ("u4", frame(2, 17, [0, 0], b"\1\0" + bytes(4))),
    "a width of 65 bits in kind 1": ("u8", frame(1, 65, [1, 2], b"\0")),
    "a gap of 17 bits in uint16": ("u2", frame(0, 17, [1, 2])),
    "fewer bytes than the widths say": ("u2", (32, b"\x01\x00\x0f" + bytes(59))),
    "more bytes than the widths say": ("u2", (32, b"\x01\x00\x0f" + bytes(61))),
    "a base of nine bytes": ("u8", frame(1, 1, [0, 1], b"\x09" + bytes(9))),
    "a base of 255 bytes": ("u8", frame(1, 1, [0, 1], b"\xff")),
    "a base beyond the frame": ("u8", (1, b"\x01\x08\x00\x00")),
    "no length of a base": ("u8", (1, b"\x01")),
    "a table beyond the frame": ("u4", frame(2, 1, [0, 1], b"\xff\xff")),
    "half of a length of a table": ("u4", (1, b"\x02\x00")),
    "a position beyond the table": ("u4", frame(2, 2, [0, 3], b"\x03\0" + bytes(12))),
    "an empty table": ("u4", frame(2, 0, [0, 0], b"\0\0")),
    "kind 4": ("u4", (1, b"\x04" + bytes(4))),
    "kind 16": ("u4", (1, b"\x10\x00")),
    "kind 0x83": ("u4", (1, b"\x83" + bytes(4))),
    "gaps beyond uint8": ("u1", frame(0, 8, [200, 55])),
    "gaps beyond int8": ("i1", frame(0, 7, [100, 27])),
    "gaps beyond uint16": ("u2", frame(0, 16, [65_535, 0])),
    "gaps beyond int32": ("i4", frame(0, 31, [2**31 - 1, 0])),
    "gaps beyond uint32": ("u4", frame(0, 32, [2**32 - 1] * 9)),
    "one item more than bytes": ("u4", (2, b"\x03" + bytes(7))),
    "4,097 items": ("u1", (4_097, b"\x03" + bytes(4_097))),
    "65,535 items of no bits": ("u1", (65_535, b"\x09\x00" + bytes(2_048))),
    "no kind": ("u1", (1, b"")),
}


@pytest.mark.parametrize(("dtype", "part"), UNSOUND.values(), ids=UNSOUND)
def test_hostile_frames(dtype: str, part: tuple[int, bytes]) -> None:
    """Each breaks one rule of the page; its checksums are right."""
    good = 1, b"\x03" + bytes(np.dtype(dtype).itemsize)
    n = max(part[0], 1)
    with bounded(mebibytes=16):
        for parts in ([part], [good, part], [part, good]):
            chunk = reader.seal(parts)
            with pytest.raises(ValueError, match=r"."):
                reader.decode(chunk, dtype)
            before, of = int(parts[0] is good), n + len(parts) - 1
            with pytest.raises(DamagedChunkError):
                read_part(GUARDED.content(chunk), of, before, n, dtype)
            with pytest.raises(ArchiveFormatError):
                decoded(chunk, dtype, of)


def test_the_largest_that_frames_may_hold() -> None:
    """What is just within the limits that the test above exceeds."""
    for dtype, part, expected in [
        ("u8", frame(0, 40, [2**40 - 1, 2**40 - 1]), [2**40 - 1, 2**41 - 1]),
        ("u8", frame(1, 64, [2**64 - 1, 0], b"\1\xff"), [2**64 - 2, 2**64 - 1]),
        ("i8", frame(1, 64, [2**64 - 1, 0], b"\x08" + bytes(7) + b"\x80"), [2**63 - 1, -(2**63)]),
        ("u4", frame(2, 16, [1, 0], b"\2\0" + struct.pack("<2I", 3, 4)), [4, 3]),
        ("u1", frame(0, 8, [200, 54]), [200, 255]),
        ("i1", frame(0, 7, [100, 26]), [100, 127]),
        ("f4", frame(1, 1, [0, 1], struct.pack("<Bi", 4, -(2**24))), [-(2**24), 1 - 2**24]),
        ("f8", frame(0, 40, [0, 2**40 - 1]), [0, 2**40]),
        ("i4", (4_096, b"\x01\x01\xfd" + bytes(64)), [-3] * 4_096),
    ]:
        chunk, items = reader.seal([part]), np.array(expected, dtype)
        assert reader.decode(chunk, dtype).tobytes() == items.tobytes()
        assert decoded(chunk, dtype, len(items)).tobytes() == items.tobytes()
    gaps = frame(0, 40, [2**40 - 1] * 32)[1][2:]
    largest = reader.seal([(4_096, b"\x08" + b"\x28" * 128 + gaps * 128)])
    items = np.arange(1, 4_097, dtype=np.uint64) * 2**40 - 1
    assert (reader.decode(largest, "u8") == items).all()
    assert (decoded(largest, "u8", 4_096) == items).all()


def test_nothing_is_read_beyond_the_last_frame() -> None:
    for n_items in (1, 2):
        chunk = reader.seal([(1, b"\x03\x07")] * n_items)
        with pytest.raises(DamagedChunkError):
            read_part(GUARDED.content(chunk), n_items, 0, n_items + 1, "u1")
        with pytest.raises(DamagedChunkError):
            read_part(GUARDED.content(chunk), n_items, 2**40, 1, "u1")


def test_another_version_of_the_codec() -> None:
    sound, chain = encode(np.arange(300)), Chain.of(CODECS, np.dtype(np.int64))
    assert chain is not None
    begin = len(sound) - 12 - 4 * len(reader.frames(sound))
    newer = f"scdl.packed: its format is 255, {UPGRADE}"
    for version, told in ((255, newer), (0, "its content is invalid")):
        tail = sound[begin:-5] + bytes([version])
        chunk = sound[:begin] + tail + checksum(tail)
        with pytest.raises(DamagedChunkError) as caught:
            decoded(chunk, np.int64, 300)
        assert str(caught.value) == told
        assert isinstance(caught.value, NewerFormatError) == (version > 1)
        with pytest.raises(DamagedChunkError) as caught:
            chain.decode(stored([sound, chunk]), np.array([9, 9]), np.empty((2, 300), np.int64))
        assert (str(caught.value), caught.value.position) == (told, 1)
        with pytest.raises(ValueError, match="tail"):
            reader.decode(chunk, "i8")


def test_checksums_without_the_function_of_google_crc32c(monkeypatch: pytest.MonkeyPatch) -> None:
    values = np.arange(300)
    chunk = encode(values, None)
    monkeypatch.setattr(blosc, "CRC32C", 0)
    np.testing.assert_array_equal(decoded(chunk, np.int64, 300), values)


@pytest.mark.parametrize("part", [frame(0, 4, [1, 2]), frame(1, 4, [1, 2], b"\0")])
def test_float16_has_no_frames_of_integers(part: tuple[int, bytes]) -> None:
    chunk = reader.seal([part])
    with pytest.raises(ValueError, match=reader.MISFIT):
        reader.decode(chunk, "f2")
    with pytest.raises(ArchiveFormatError):
        decoded(chunk, "f2", 2)


def test_offsets_beyond_the_type() -> None:
    content = stored([reader.seal([frame(1, 7, [10, 100], b"\2\xfa\0")])])
    found = [np.zeros(2, np.uint8), np.zeros(2, np.uint32)]
    pieces = tuple(np.array(part) for part in ([0, 1], [0], [0], [2]))
    for out in found:
        with pytest.raises(DamagedChunkError, match="content"):
            packed.place(content, pieces, 2, np.dtype("u1"), Bound.of(), out)


def test_ids_behind_the_end_of_the_array_have_any_value() -> None:
    """Zarr extends the last chunk, with items that no reader asks for."""
    content = stored([encode(np.array([0, 2, 1, 65_535], np.uint16))])
    found = read_part(content, 4, 0, 3, np.uint16, Bound.of(3))
    assert found.tolist() == [0, 2, 1]


def test_chunks_with_more_items_than_the_array() -> None:
    """As with other codecs, whose chunks then have the wrong size."""
    with pytest.raises(ArchiveFormatError):
        decoded(encode(np.arange(301)), np.int64, 300)
