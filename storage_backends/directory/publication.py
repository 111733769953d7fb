"""Putting files and directories where they belong, in one step that survives a crash or fails."""

from __future__ import annotations

import contextlib
import ctypes
import errno
import glob
import os
import secrets
import shutil
from collections.abc import Iterator

from storage_backends.errors import ArchiveWriteError

#: End of the names of hidden directories that are not published, or not any more.
PART = ".scdl-part"
#: Between the name of a target and that end, as a pattern: the target is no other's.
RANDOM = "[0-9a-f]" * 8
#: What follows where two paths cannot be swapped in one step.
ASIDE = ".old"
#: Begins the names of directories that are being removed, as whoever finds one may.
_GONE = ".scdl-removed-"
_AT_FDCWD = -100
_RENAME_EXCHANGE = 2


def hidden_beside(target: str) -> str:
    """A new path in the directory of a target, which is known to be the target's."""
    parent, name = os.path.split(target)
    return os.path.join(parent, f".{name}.{secrets.token_hex(4)}{PART}")


def require_parent(target: str) -> None:
    """ArchiveWriteError where the directory that a target goes into is not there."""
    parent = os.path.dirname(target)
    if not os.path.isdir(parent):
        raise ArchiveWriteError(
            errno.ENOENT, f"the directory above does not exist; create {parent} first", target
        )


def move(path: str, target: str) -> None:
    """Rename durably to where nothing stands; on an error nothing stands there again."""
    os.rename(path, target)
    try:
        flush(os.path.dirname(target))
    except BaseException:
        os.rename(target, path)
        raise


def exchange(path: str, target: str) -> None:
    """Swap two paths durably; on an error both stand where they were."""
    _exchange(path, target)
    try:
        flush(os.path.dirname(target))
    except BaseException:
        _exchange(path, target)
        raise


def replace_file(path: str, target: str) -> None:
    """Put a file in the place of another, or of none, durably, and remove that.

    On an error the other one stands there, where the system can swap files. A directory is no
    file, and stays.
    """
    if os.path.isdir(target) and not os.path.islink(target):
        raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR), target)
    if not os.path.lexists(target):
        move(path, target)
    elif swap(path, target):
        try:
            flush(os.path.dirname(target))
        except BaseException:
            swap(path, target)
            raise
        remove(path)
    else:
        os.replace(path, target)
        flush(os.path.dirname(target))


@contextlib.contextmanager
def new_file(target: str) -> Iterator[str]:
    """A hidden path, the file at which takes the place of a target: whole, durably, at the end."""
    target = os.path.abspath(target)
    part = hidden_beside(target)
    try:
        yield part
        flush(part)
        replace_file(part, target)
    finally:
        remove(part)


def _exchange(a: str, b: str) -> None:
    """Swap two paths: in one step where the system can, else with a moment without `b`."""
    if swap(a, b):
        return
    aside = a + ASIDE
    os.rename(b, aside)
    try:
        os.rename(a, b)
    except BaseException:
        os.rename(aside, b)
        raise
    os.rename(aside, a)


def swap(a: str, b: str) -> bool:
    """Swap two paths in one step; False where the system cannot."""
    rename = getattr(ctypes.CDLL(None, use_errno=True), "renameat2", None)
    if rename is None:
        return False
    done = rename(_AT_FDCWD, os.fsencode(a), _AT_FDCWD, os.fsencode(b), _RENAME_EXCHANGE)
    code = 0 if done == 0 else ctypes.get_errno()
    if code not in (0, errno.ENOSYS, errno.EINVAL, errno.ENOTSUP):
        raise OSError(code, os.strerror(code), b)
    return code == 0


def take_away(path: str) -> None:
    """Remove a directory in one step, so that nobody finds a part of it at its path."""
    path = os.path.realpath(path)
    hidden = os.path.join(os.path.dirname(path), f"{_GONE}{secrets.token_hex(4)}")
    os.rename(path, hidden)
    remove(hidden)


def sweep(directory: str) -> None:
    """Remove what killed processes were removing in a directory."""
    for left in glob.glob(os.path.join(glob.escape(directory), f"{_GONE}*")):
        remove(left)


def remove(path: str) -> None:
    """Remove a file or a directory that nobody needs any more, as far as that is possible."""
    if os.path.isdir(path) and not os.path.islink(path):
        shutil.rmtree(path, ignore_errors=True)
    else:
        with contextlib.suppress(OSError):
            os.remove(path)


def flush(path: str) -> None:
    """Have the disk keep what a file holds, or which names a directory has."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def flush_tree(root: str) -> None:
    """Flush all files and directories below, and the directory itself."""
    for directory, _, files in os.walk(root, topdown=False):
        for name in files:
            path = os.path.join(directory, name)
            # Links that lead nowhere, and pipes, may be in an archive that is changed.
            if os.path.isfile(path):
                flush(path)
        flush(directory)
