"""Decodes what another process encoded, and compares: a process for the processor that it names."""

from __future__ import annotations

import sys

import numpy as np
from numba import njit

from storage_backends.directory.content import Content
from storage_backends.zarr.codecs import bit_lanes, frame_bodies, frame_lanes, pcodec
from storage_backends.zarr.codecs.ans import Ans
from storage_backends.zarr.codecs.frame_format import BLOCK, INVALID


@njit
def put_block(what: int, address: int, width: int, number: int, out: np.ndarray) -> int:
    """Decode a block from position 1 on with one of the intrinsics."""
    if what == 0:
        frame_lanes.put_numbers(address, width, number, out, 1)
    elif what == 1:
        frame_lanes.put_floats(address, width, number, out, 1)
    else:
        number = frame_lanes.put_sums(address, width, number, out, 1)
    return number


def check_blocks(most: int) -> None:
    """Blocks of all widths and kinds to items of all sizes, at any address."""
    rng = np.random.default_rng(0)
    for size in (1, 2, 4, 8):
        for width in range(frame_lanes.MOST_BITS + 1):
            for _ in range(most):
                numbers = rng.integers(0, 1 << width, BLOCK)
                # All bits of some numbers are set.
                numbers[rng.random(BLOCK) < 0.2] = (1 << width) - 1
                bits = (numbers[:, None] >> np.arange(width)) & 1
                packed = np.packbits(bits.astype(np.uint8), bitorder="little")
                # What lies around a block may have any bits.
                memory, at = rng.integers(0, 256, 256, np.uint8), int(rng.integers(0, 64))
                memory[at : at + len(packed)] = packed
                # Sums that are exact in floats of the size.
                number = int(rng.integers(-1 << 23, 1 << 23) << (size & 8))
                floats = (numbers + number).astype(f"f{max(size, 4)}").view(f"u{max(size, 4)}")
                sums = number + np.cumsum(numbers + 1)
                for what, expected in enumerate((numbers + number, floats, sums)):
                    narrow = what == 1 and size < 4, what == 2 and width > frame_lanes.MOST_GAP_BITS
                    if any(narrow):
                        continue
                    out = np.full(BLOCK + 2, 77, f"u{size}")
                    last = put_block(what, memory.ctypes.data + at, width, number, out)
                    assert (out[1:-1] == expected.astype(out.dtype)).all(), (what, size, width)
                    assert (out[0], out[-1]) == (77, 77)
                    assert what < 2 or last == sums[-1]


def check_frames(path: str) -> None:
    """Frames of all kinds and lengths to items of four bytes."""
    found = np.load(path)
    at = 0
    for content, (size, n, kind) in zip(found["contents"], found["heads"].tolist(), strict=True):
        out = np.full(n + 2, 77, np.uint32)
        most = frame_bodies.decode_frame(content.ctypes.data, size, 4, kind, out[1:-1])
        assert most != INVALID
        assert (out[1:-1] == found["items"][at : at + n]).all(), (size, n, kind)
        assert (out[0], out[-1]) == (77, 77)
        at += n


def check_coded(path: str) -> None:
    """Chunks of scdl.ans, and of pcodec if there are any."""
    found = np.load(path)
    for key, values in found.items():
        codec, _, text = key.partition(" ")
        if codec == "of":
            continue
        out = np.zeros_like(values)
        chunk = found[f"of {key}"]
        if codec == "ans":
            differences, _, tables = text.partition(" ")
            Ans(tables, differences == "True").decode_one(chunk.tobytes(), out)
        else:
            content = Content(np.array([chunk.ctypes.data]), np.array([len(chunk)]), chunk)
            assert pcodec.decode(content, np.array([len(out)]), out.reshape(1, -1)) == -1
        assert (out == values).all(), key


if __name__ == "__main__":
    pick, in_lanes, most, *files = sys.argv[1:]
    found = frame_lanes.PICK and frame_lanes.PICK[0]
    assert (str(found), str(bit_lanes.IS_KNOWN)) == (pick, in_lanes), found
    check_blocks(int(most))
    for check, file in zip((check_frames, check_coded), files, strict=False):
        check(file)
