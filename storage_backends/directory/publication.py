"""Atomic, durable publication of files and directories at their final paths."""

from __future__ import annotations

import contextlib
import ctypes
import errno
import glob
import os
import secrets
import shutil
import sys
import time
from collections.abc import Callable, Iterator

from storage_backends.compute import threads
from storage_backends.compute.c_library import c_function
from storage_backends.errors import ArchiveExistsError, ArchiveWriteError

#: Suffix of hidden files and directories that are not published yet, or were replaced.
PART = ".scdl-part"
#: Glob pattern of the random part of a hidden name, between the target's name and the suffix.
RANDOM = "[0-9a-f]" * 8
#: Additional suffix of a target that is moved away during a non-atomic swap.
SWAPPED = ".old"
#: Prefix of directories that are being removed; any process may finish their removal.
_REMOVED = ".scdl-removed-"
#: Files to flush at once, unless flushing one takes less than some seconds.
_FLUSHED_AT_ONCE, _QUICK = 8, 5e-4
_AT_FDCWD = -100
_RENAME_EXCHANGE = 2


def hidden_beside(target: str) -> str:
    """A new hidden path in the directory of a target; its name contains that of the target."""
    parent, name = os.path.split(target)
    return os.path.join(parent, f".{name}.{secrets.token_hex(4)}{PART}")


def require_absent(target: str, *, replace: bool) -> None:
    """Raise ArchiveExistsError if something is at the target, and is not to be replaced."""
    if os.path.lexists(target) and not replace:
        raise ArchiveExistsError(
            f"{target}: something exists here already; give replace=True (--overwrite) to replace "
            "it, or choose another path"
        )


def require_parent(target: str) -> None:
    """Raise ArchiveWriteError if the parent directory of a target does not exist."""
    parent = os.path.dirname(target)
    if not os.path.isdir(parent):
        raise ArchiveWriteError(
            errno.ENOENT, f"the parent directory does not exist; create {parent} first", target
        )


def move(path: str, target: str) -> None:
    """Rename to an unused path, durably; an error leaves no file at the target."""
    os.rename(path, target)
    _confirm(target, lambda: os.rename(target, path))


def exchange(path: str, target: str) -> None:
    """Swap two paths, durably; an error leaves both unchanged."""
    _swap_or_rename(path, target)
    _confirm(target, lambda: _swap_or_rename(path, target))


def _confirm(target: str, undo: Callable[[], object]) -> None:
    """Make a change of a path durable; undo it if that fails."""
    try:
        flush(os.path.dirname(target))
    except BaseException:
        undo()
        raise


def replace_file(path: str, target: str) -> None:
    """Move a file to a target, durably, and remove the file that it replaces.

    If the system can swap files, an error leaves the target unchanged. A directory is never
    replaced.
    """
    if os.path.isdir(target) and not os.path.islink(target):
        raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR), target)
    if not os.path.lexists(target):
        move(path, target)
    elif swap(path, target):
        _confirm(target, lambda: swap(path, target))
        remove(path)
    else:
        os.replace(path, target)
        flush(os.path.dirname(target))


@contextlib.contextmanager
def new_file(target: str) -> Iterator[str]:
    """Context manager: a hidden path for a new file, which replaces the target at the end."""
    target = os.path.abspath(target)
    part = hidden_beside(target)
    try:
        yield part
        flush(part)
        replace_file(part, target)
    finally:
        remove(part)


def _swap_or_rename(a: str, b: str) -> None:
    """Swap two paths atomically if the system can, else by renames; `b` is missing for a moment."""
    if swap(a, b):
        return
    moved = a + SWAPPED
    os.rename(b, moved)
    try:
        os.rename(a, b)
    except BaseException:
        os.rename(moved, b)
        raise
    os.rename(moved, a)


def swap(a: str, b: str) -> bool:
    """Swap two paths atomically; False if the system does not support it."""
    paths = ctypes.c_int, ctypes.c_char_p
    rename = c_function("renameat2", *paths, *paths, ctypes.c_uint)
    if rename is None:
        return False
    done = rename(_AT_FDCWD, os.fsencode(a), _AT_FDCWD, os.fsencode(b), _RENAME_EXCHANGE)
    code = 0 if done == 0 else ctypes.get_errno()
    if code not in (0, errno.ENOSYS, errno.EINVAL, errno.ENOTSUP):
        raise OSError(code, os.strerror(code), b)
    return code == 0


def remove_atomically(path: str) -> None:
    """Remove a directory atomically: rename it to a hidden path, then delete its content."""
    path = os.path.realpath(path)
    hidden = os.path.join(os.path.dirname(path), f"{_REMOVED}{secrets.token_hex(4)}")
    os.rename(path, hidden)
    remove(hidden)


def finish_removals(directory: str) -> None:
    """Finish removals in a directory that killed processes had begun."""
    for leftover in glob.glob(os.path.join(glob.escape(directory), f"{_REMOVED}*")):
        remove(leftover)


def remove(path: str) -> None:
    """Remove a file or a directory; errors are ignored."""
    if os.path.isdir(path) and not os.path.islink(path):
        shutil.rmtree(path, ignore_errors=True)
    else:
        with contextlib.suppress(OSError):
            os.remove(path)


def flush(path: str) -> None:
    """Flush the content of a file, or the entries of a directory, to the disk."""
    if sys.platform == "win32":
        # Windows flushes only files that are open for writing.
        return
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def flush_tree(root: str) -> None:
    """Flush a directory and all files and directories in it.

    Several at a time, so that the file system writes its journal once for many of them.
    """
    paths = []
    for directory, _, files in os.walk(root):
        inside = (os.path.join(directory, name) for name in files)
        # Skip dangling links and pipes, which a modified archive may contain.
        paths += [directory, *filter(os.path.isfile, inside)]
    # A file system in memory takes less time than threads.
    took = 0.0
    while paths and took < _QUICK:
        start = time.perf_counter()
        flush(paths.pop())
        took = time.perf_counter() - start
    if paths:
        with threads.pool_of(_FLUSHED_AT_ONCE, "scdl-flush") as pool:
            for _ in pool.map(flush, paths):
                pass
