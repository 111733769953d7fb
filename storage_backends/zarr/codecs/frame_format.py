"""Frames: a chunk of numbers in pieces that are packed, checked and decoded on their own.

``docs/format.md`` describes them byte by byte. A chunk has frames, a directory with the number of
items and bytes of each, and a tail. A frame has a kind, a body and a checksum. Its numbers are
packed in blocks of 32, each with a width of its own. Numbers are loaded as words or as 16 bytes,
which may end after the last frame, but not after the tail.

Lengths follow from the directory and the widths, so frames and blocks can be decoded in any order,
and so can the numbers of a block.
"""

from __future__ import annotations

#: Near the end of a chunk, with the version, as a little-endian number.
MAGIC, VERSION = 0x706373, 1
TAIL_BYTES, ENTRY_BYTES, SUM_BYTES = 12, 4, 4
GAPS, OFFSETS, TABLE, RAW = range(4)
#: Added to the kind if widths take a byte each.
WIDE = 8
BLOCK = 32
#: Most items of a frame, and most bits of a gap: the sum of so many does not overflow.
MOST_ITEMS, GAP_BITS = 1 << 12, 40
#: Types of items: unsigned and signed integers, and floats.
UNSIGNED, SIGNED, FLOAT = range(3)
#: The same by the kind of a dtype.
KINDS = {"u": UNSIGNED, "i": SIGNED, "f": FLOAT}

#: Instead of the largest item of a frame: it is invalid, or its items do not ascend.
INVALID, MIXED = -1, -2

#: Added to the position of a chunk with an id that is out of bounds.
BEYOND = 1 << 35
