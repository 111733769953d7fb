"""A second reader of the codec scdl.packed, from its page (docs/format.md) alone.

It decodes number by number, checks all that the page says, and shares no code with the library.
"""

from __future__ import annotations

from typing import NamedTuple

import google_crc32c
import numpy as np

MAGIC = b"scp\x01"
#: Integers in ascending order, integers, items of a table, items.
ASCENDING, INTEGERS, TABLE, ITEMS = range(4)
#: Bit of the kind: the widths of blocks take a byte each.
BYTE_WIDTHS = 8
#: Numbers of a block, which have one width.
BLOCK = 32
MOST_ITEMS = 4_096
#: Integers of at most these magnitudes are exact in floats of so many bytes.
EXACT = {2: -1, 4: 1 << 24, 8: 1 << 53}
#: Reasons that say nothing about the items that are there, or that the page leaves open.
FILLED, MISFIT = "no zero after the last width", "integer does not fit the type"


class Frame(NamedTuple):
    """A frame as the directory describes it; `content` includes its checksum, not checked yet."""

    first: int
    n: int
    kind: int
    content: bytes


def decode(chunk: bytes, dtype: np.dtype | str) -> np.ndarray:
    """Return all items of a chunk; ValueError."""
    dtype = np.dtype(dtype).newbyteorder("<")
    parts = [_frame(frame, dtype) for frame in frames(chunk)]
    return np.concatenate([np.empty(0, dtype), *parts])


def frames(chunk: bytes) -> list[Frame]:
    """Return the frames of a chunk, whose tail and directory are checked; ValueError."""
    _check(len(chunk) >= 12, f"chunk of {len(chunk)} bytes")
    _check(chunk[-8:-4] == MAGIC, f"tail with {chunk[-8:-4]!r}")
    n_frames = int.from_bytes(chunk[-12:-8], "little")
    begin = len(chunk) - 12 - 4 * n_frames
    _check(begin >= 0, f"{n_frames} frames in {len(chunk)} bytes")
    _check_sum(chunk[begin:], "directory")
    found, first, at = [], 0, 0
    for n, size in np.frombuffer(chunk[begin:-12], "<u2").reshape(-1, 2).tolist():
        _check(1 <= n <= MOST_ITEMS, f"frame of {n} items")
        _check(size >= 5, f"frame of {size} bytes")
        _check(at + size <= begin, "frame beyond the directory")
        found.append(Frame(first, n, chunk[at] & 3, chunk[at : at + size]))
        first, at = first + n, at + size
    _check(at == begin, f"{begin - at} bytes after the last frame")
    return found


def seal(parts: list[tuple[int, bytes]]) -> bytes:
    """Return the chunk of frames, given as items, and kind and body, none of which is checked."""
    contents = [content + _sum(content) for _, content in parts]
    entries = [(n, len(content)) for (n, _), content in zip(parts, contents, strict=True)]
    tail = np.array(entries, "<u2").tobytes() + len(parts).to_bytes(4, "little") + MAGIC
    return b"".join(contents) + tail + _sum(tail)


def _frame(frame: Frame, dtype: np.dtype) -> np.ndarray:
    _check_sum(frame.content, "frame")
    flags, body = frame.content[0], frame.content[1:-4]
    _check(not flags & ~(3 | BYTE_WIDTHS), f"kind {flags}")
    byte_widths, bits = bool(flags & BYTE_WIDTHS), 8 * dtype.itemsize
    if frame.kind == ASCENDING:
        steps = [int(gap) + 1 for gap in _numbers(body, frame.n, byte_widths, min(40, bits))]
        return _integers(np.cumsum(steps) - 1, dtype)
    if frame.kind == INTEGERS:
        _check(len(body) > 0 and body[0] <= 8, "length of the base")
        end = 1 + body[0]
        _check(end <= len(body), "base beyond the frame")
        base = int.from_bytes(body[1:end], "little", signed=True)
        packed = _numbers(body[end:], frame.n, byte_widths, bits)
        return _integers(np.array([base + int(number) for number in packed], object), dtype)
    if frame.kind == TABLE:
        _check(len(body) >= 2, "no length of the table")
        length = int.from_bytes(body[:2], "little")
        end = 2 + length * dtype.itemsize
        _check(end <= len(body), "table beyond the frame")
        table = np.frombuffer(body[2:end], dtype)
        positions = _numbers(body[end:], frame.n, byte_widths, min(16, bits))
        _check(max(positions) < length, "position beyond the table")
        return table[positions.astype(np.intp)]
    _check(len(body) == frame.n * dtype.itemsize, f"{len(body)} bytes of {frame.n} items")
    return np.frombuffer(body, dtype)


def _numbers(data: bytes, n: int, byte_widths: bool, most: int) -> np.ndarray:
    """Return `n` packed numbers (uint64), which take all of `data`."""
    counts = [min(BLOCK, n - first) for first in range(0, n, BLOCK)]
    at = len(counts) if byte_widths else -(-len(counts) // 2)
    _check(at <= len(data), "widths beyond the frame")
    if byte_widths:
        widths = list(data[:at])
    else:
        widths = [half for byte in data[:at] for half in (byte & 15, byte >> 4)]
        _check(not any(widths[len(counts) :]), FILLED)
    _check(max(widths) <= most, f"width {max(widths)} of at most {most}")
    out = np.empty(n, np.uint64)
    for block, (count, width) in enumerate(zip(counts, widths, strict=False)):
        size = -(-count * width // 8)
        _check(at + size <= len(data), "numbers beyond the frame")
        bits = np.unpackbits(np.frombuffer(data[at : at + size], np.uint8), bitorder="little")
        rows = bits[: count * width].reshape(count, width).astype(np.uint64)
        values = (rows << np.arange(width, dtype=np.uint64)).sum(axis=1, dtype=np.uint64)
        out[block * BLOCK : block * BLOCK + count] = values
        at += size
    _check(at == len(data), f"{len(data) - at} bytes after the numbers")
    return out


def _integers(exact: np.ndarray, dtype: np.dtype) -> np.ndarray:
    """Convert to the type of the array."""
    if dtype.kind == "f":
        _check(max(abs(exact)) <= EXACT[dtype.itemsize], MISFIT)
        return exact.astype(dtype)
    if dtype == np.uint64:
        return np.array([int(value) % 2**64 for value in exact], dtype)
    limits = np.iinfo(dtype)
    _check(limits.min <= min(exact) and max(exact) <= limits.max, MISFIT)
    return exact.astype(dtype)


def _check_sum(data: bytes, what: str) -> None:
    _check(_sum(data[:-4]) == data[-4:], f"CRC32C of {what}")


def _sum(data: bytes) -> bytes:
    return int(google_crc32c.value(data)).to_bytes(4, "little")


def _check(sound: bool, reason: str) -> None:
    if not sound:
        raise ValueError(reason)
