"""Files of an archive in a directory, and what they may claim.

Archives come from others: what they say of themselves is believed only as far as their files can
hold it, and no file is read that does not lie in the archive.
"""

from __future__ import annotations

import math
import os
import stat
from collections.abc import Callable, Sequence

import numpy as np

from storage_backends.errors import ArchiveFormatError

#: What may be claimed whatever the size of the files, and for each of their bytes: what is constant
#: compresses a thousandfold with any codec, and what real arrays hold never more than that.
FREE_BYTES = 1 << 25
BYTES_PER_BYTE = 1 << 12
#: No number of items is larger, so that offsets fit.
_MOST_ITEMS = 1 << 62
#: Bytes of a name, on the file systems there are.
_LONGEST_NAME = 255


def path_of(root: str, key: str) -> str:
    """Path of a file of an archive.

    Parameters
    ----------
    root
        The archive, without links in its path.
    key
        Path within it, with ``/``.

    Raises
    ------
    ArchiveFormatError
        It leads out of the archive, by its name or by a link.
    """
    path, links = root.rstrip("/"), False
    for name in key.split("/"):
        if name in ("", ".", "..") or not _is_name(name):
            raise ArchiveFormatError(f"{root}: it names a file {key!r:.200}, which cannot be in it")
        path = f"{path}/{name}"
        links = links or os.path.islink(path)
    if links:
        target = os.path.realpath(path)
        if os.path.commonpath([root, target]) != root:
            raise ArchiveFormatError(
                f"{path}: a link leads out of the archive, to {target}; if that is meant, copy the "
                "archive with `cp -rL`, which puts files in the place of links"
            )
    return path


def _is_name(name: str) -> bool:
    """Whether a file system can have a file of that name."""
    try:
        return "\0" not in name and len(os.fsencode(name)) <= _LONGEST_NAME
    except UnicodeEncodeError:
        return False


def read(root: str, key: str) -> bytes:
    """A small file as a whole.

    Raises
    ------
    ArchiveFormatError
        It is missing, no file, or leads out of the archive.
    """
    path = path_of(root, key)
    try:
        # Opening a pipe waits for somebody who writes.
        descriptor = os.open(path, os.O_RDONLY | getattr(os, "O_NONBLOCK", 0))
    except FileNotFoundError:
        raise ArchiveFormatError(f"{path}: the file is missing") from None
    with open(descriptor, "rb") as stream:
        if not stat.S_ISREG(os.fstat(descriptor).st_mode):
            raise ArchiveFormatError(f"{path}: expected a file, found something else")
        return stream.read()


def check_claim(
    where: str, shape: Sequence[int], dtype: np.dtype[np.generic] | int, held: Callable[[], int]
) -> None:
    """ArchiveFormatError where an array is said to be larger than its archive can hold.

    Parameters
    ----------
    where
        Opens the message.
    shape
        Its extents.
    dtype
        Type of its items, or bytes of one.
    held
        Bytes of the files, which are counted only for large claims.
    """
    itemsize = dtype if isinstance(dtype, int) else dtype.itemsize
    claimed = math.prod(shape) * max(itemsize, 1)
    # An extent of none hides what others claim.
    largest = math.prod(n for n in shape if n)
    if min(shape, default=0) < 0 or largest >= _MOST_ITEMS:
        raise ArchiveFormatError(f"{where} cannot be of shape {_short(shape)}; it is damaged")
    if claimed > FREE_BYTES and claimed > FREE_BYTES + BYTES_PER_BYTE * held():
        raise ArchiveFormatError(
            f"{where} is said to be of shape {_short(shape)}, which takes {claimed:,} bytes, "
            f"out of proportion to the {held():,} bytes of its files; it is damaged"
        )


def _short(shape: Sequence[int]) -> str:
    return f"({', '.join(f'{n:.4g}' if n >= _MOST_ITEMS else str(n) for n in shape)})"[:100]
