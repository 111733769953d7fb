"""Files of an archive in a directory: archives come from others, and nothing else is read."""

from __future__ import annotations

import os
import stat
from collections.abc import Sequence

from storage_backends.errors import ArchiveFormatError, ArchiveLinkError

#: What tells an archive from another that takes its place.
Identity = tuple[int, ...]

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
            raise ArchiveLinkError(
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
        with open(open_file(path), "rb") as stream:
            return stream.read()
    except FileNotFoundError:
        raise ArchiveFormatError(f"{path}: the file is missing") from None


def open_file(path: str) -> int:
    """A descriptor of a file, to be read.

    Raises
    ------
    ArchiveFormatError
        What is at the path is no file.
    FileNotFoundError
        There is nothing.
    """
    # Opening a pipe waits for somebody who writes.
    descriptor = os.open(path, os.O_RDONLY | getattr(os, "O_NONBLOCK", 0))
    if stat.S_ISREG(os.fstat(descriptor).st_mode):
        return descriptor
    os.close(descriptor)
    raise ArchiveFormatError(f"{path}: expected a file, found something else")


def identity_of(path: str, markers: Sequence[str]) -> Identity | None:
    """What tells the archive at a path from others; None where there is none.

    Parameters
    ----------
    markers
        Files of which one stands in it.
    """
    try:
        directory = os.stat(path)
        there = (os.path.join(path, name) for name in markers)
        marker = os.stat(next(file for file in there if os.path.isfile(file)))
    except (OSError, StopIteration):
        return None
    # Numbers of directories are used again; the file tells when it was written.
    return directory.st_dev, directory.st_ino, marker.st_ino, marker.st_mtime_ns
