"""Safe access to the files of an untrusted archive, all within its directory."""

from __future__ import annotations

import contextlib
import os
import stat
from collections.abc import Sequence

from storage_backends.errors import ArchiveFormatError, ArchiveLinkError

#: Identifies an archive at a path until it is replaced by another.
Identity = tuple[int, ...]

#: Maximum bytes of a file name on common file systems.
_MAX_NAME_BYTES = 255

#: Without O_NONBLOCK, opening a pipe would block until another process writes to it.
_READ_ONLY = os.O_RDONLY | getattr(os, "O_NONBLOCK", 0) | getattr(os, "O_BINARY", 0)


def file_path(root: str, key: str) -> str:
    """Path of a file of an archive.

    Parameters
    ----------
    root
        Directory of the archive, without symbolic links in its path.
    key
        Path relative to the archive, with ``/``.

    Raises
    ------
    ArchiveFormatError
        `key` is outside the archive, by its name or through a symbolic link.
    """
    path, links = root.rstrip("/"), False
    for name in key.split("/"):
        if name in ("", ".", "..") or not _is_name(name):
            raise ArchiveFormatError(
                f"{root}: the archive refers to a file {key!r:.200}, which is outside of it"
            )
        path = f"{path}/{name}"
        if not links:
            try:
                links = stat.S_ISLNK(os.lstat(path).st_mode)
            except OSError:
                # What does not exist is no link.
                continue
    if links:
        target = os.path.realpath(path)
        if os.path.commonpath([root, target]) != root:
            raise ArchiveLinkError(
                f"{path}: a link leads out of the archive, to {target}; if that is intended, copy "
                "the archive with `cp -rL`, which replaces links by files"
            )
    return path


def _is_name(name: str) -> bool:
    """Whether file systems can have a file of that name."""
    try:
        length = len(name) if name.isascii() else len(os.fsencode(name))
    except UnicodeEncodeError:
        return False
    return "\0" not in name and length <= _MAX_NAME_BYTES


def file_sizes(root: str) -> dict[str, int]:
    """Bytes of all files in a directory and its subdirectories, by path relative to it.

    Links are not followed, and directories that cannot be read are left out.
    """
    sizes, directories = {}, [""]
    for directory in directories:
        with contextlib.suppress(OSError), os.scandir(f"{root}/{directory}") as entries:
            for entry in entries:
                if entry.is_dir(follow_symlinks=False):
                    directories.append(f"{directory}{entry.name}/")
                else:
                    size = entry.stat(follow_symlinks=False).st_size
                    sizes[f"{directory}{entry.name}"] = size
    return sizes


def read_file(root: str, key: str) -> bytes:
    """Read a small file completely.

    Raises
    ------
    ArchiveFormatError
        The path does not exist, is not a file, or is outside the archive.
    """
    path = file_path(root, key)
    try:
        return read_path(path)
    except FileNotFoundError:
        raise ArchiveFormatError(f"{path}: the file is missing") from None


def read_path(path: str) -> bytes:
    """Read a small file completely; errors of :func:`open_file`."""
    descriptor, size = open_file(path)
    try:
        return read_opened(descriptor, size)
    finally:
        os.close(descriptor)


def read_opened(descriptor: int, size: int) -> bytes:
    """Read an open file of `size` bytes; a stream of Python takes longer for a small one."""
    data = os.read(descriptor, size)
    while len(data) < size and (more := os.read(descriptor, size - len(data))):
        data += more
    return data


def open_file(path: str) -> tuple[int, int]:
    """Open a file for reading; returns its descriptor and its size in bytes.

    Raises
    ------
    ArchiveFormatError
        The path is not a regular file.
    FileNotFoundError
        The path does not exist.
    """
    descriptor = os.open(path, _READ_ONLY)
    status = os.fstat(descriptor)
    if stat.S_ISREG(status.st_mode):
        return descriptor, status.st_size
    os.close(descriptor)
    raise ArchiveFormatError(f"{path}: expected a regular file")


def identity_of(path: str, markers: Sequence[str]) -> Identity | None:
    """Identity of the archive at a path; None if there is no archive.

    Parameters
    ----------
    markers
        Names of files; every archive has at least one of them.
    """
    try:
        directory = os.stat(path)
    except OSError:
        return None
    for name in markers:
        with contextlib.suppress(OSError):
            marker = os.stat(os.path.join(path, name))
            if stat.S_ISREG(marker.st_mode):
                # Inode numbers are reused, so the modification time of the file is included.
                return directory.st_dev, directory.st_ino, marker.st_ino, marker.st_mtime_ns
    return None
