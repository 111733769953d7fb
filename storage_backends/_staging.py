"""Publishing a directory atomically: write beside the target, flush, rename.

The staging directory is hidden, stands beside its target and is locked by its writer. A lock does
not outlive its process, so what a killed writer left is recognised, and removed by the next one.
"""

from __future__ import annotations

import contextlib
import ctypes
import errno
import fcntl
import glob
import os
import secrets
import shutil
import weakref
from typing import Self

from storage_backends.errors import ArchiveExistsError, ArchiveWriteError, refused_write

_SUFFIX = ".scdl-part"
_ASIDE = ".old"
_NO_LOCKS = (errno.EBADF, errno.ENOLCK, errno.ENOSYS, errno.EOPNOTSUPP)
_AT_FDCWD = -100
_RENAME_EXCHANGE = 2


class Staging:
    """A directory that becomes `target` when it is published.

    It is removed when it is discarded, when nothing refers to it any more, and at the latest when
    the process ends.
    """

    def __init__(self, target: str, path: str, lock: int, *, replace: bool) -> None:
        self.target = target
        self.path = path
        self._replace = replace
        self._end = weakref.finalize(self, _end, path, lock, os.getpid())

    @classmethod
    def create(cls, target: str, *, replace: bool) -> Self:
        """Make the directory, and remove what killed writers of the same target left.

        Raises
        ------
        ArchiveExistsError
            `target` exists and `replace` is false.
        ArchiveWriteError
            The directory cannot be made.
        """
        # What is replaced is the archive, not a link to it.
        target = os.path.realpath(target) if replace else os.path.abspath(target)
        if os.path.lexists(target) and not replace:
            raise ArchiveExistsError(
                f"{target}: something exists here already; choose another path or remove it"
            )
        parent, name = os.path.split(target)
        with refused_write(target):
            if not os.path.isdir(parent):
                raise ArchiveWriteError(
                    errno.ENOENT,
                    f"the directory above does not exist; create {parent} first",
                    target,
                )
            _remove_leftovers(target)
            while True:
                path = os.path.join(parent, f".{name}.{secrets.token_hex(4)}{_SUFFIX}")
                try:
                    os.mkdir(path)
                    lock = _lock(path)
                    if lock is not None:
                        return cls(target, path, lock, replace=replace)
                    # Another writer took it for a leftover, in the moment before it was locked.
                except BaseException:
                    shutil.rmtree(path, ignore_errors=True)
                    raise

    def publish(self) -> None:
        """Flush everything to the disk, then rename to the target in one step."""
        with refused_write(self.target):
            _flush_tree(self.path)
            if self._replace and os.path.lexists(self.target):
                _exchange(self.path, self.target)
                _flush(os.path.dirname(self.target))
                _remove(self.path)
            else:
                try:
                    os.rename(self.path, self.target)
                except OSError as error:
                    if error.errno in (errno.ENOTEMPTY, errno.EEXIST, errno.ENOTDIR):
                        raise ArchiveExistsError(
                            f"{self.target}: something was put here meanwhile; choose another path"
                        ) from error
                    raise
                _flush(os.path.dirname(self.target))
        self._end()

    def discard(self) -> None:
        """Remove the directory."""
        self._end()


def _end(path: str, lock: int, owner: int) -> None:
    """Remove what has not been published, unless this is a fork of the process that writes it."""
    if os.getpid() == owner:
        shutil.rmtree(path, ignore_errors=True)
    os.close(lock)


def _lock(path: str) -> int | None:
    """Lock a directory; None where it has been removed meanwhile."""
    try:
        lock = os.open(path, os.O_RDONLY)
    except FileNotFoundError:
        return None
    try:
        fcntl.flock(lock, fcntl.LOCK_EX)
    except OSError as error:
        # Some network file systems do not lock directories; nobody removes leftovers there.
        if error.errno not in _NO_LOCKS:
            raise
    if os.path.exists(path):
        return lock
    os.close(lock)
    return None


def _remove_leftovers(target: str) -> None:
    parent, name = os.path.split(target)
    pattern = os.path.join(glob.escape(parent), glob.escape(f".{name}.") + "*" + _SUFFIX)
    for path in glob.glob(pattern + _ASIDE):
        # Killed between the two renames of `_exchange`, or behind them.
        if os.path.lexists(target):
            shutil.rmtree(path, ignore_errors=True)
        else:
            os.rename(path, target)
    for path in glob.glob(pattern):
        with contextlib.suppress(FileNotFoundError):
            lock = os.open(path, os.O_RDONLY)
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
                shutil.rmtree(path, ignore_errors=True)
            except OSError as error:
                # Its writer is alive, or nobody can tell.
                if error.errno not in (errno.EWOULDBLOCK, *_NO_LOCKS):
                    raise
            finally:
                os.close(lock)


def _exchange(a: str, b: str) -> None:
    """Swap two paths: in one step where the system can, else with a moment without `b`."""
    if _swap(a, b):
        return
    aside = a + _ASIDE
    os.rename(b, aside)
    try:
        os.rename(a, b)
    except BaseException:
        os.rename(aside, b)
        raise
    os.rename(aside, a)


def _swap(a: str, b: str) -> bool:
    """Swap two paths in one step; False where the system cannot."""
    rename = getattr(ctypes.CDLL(None, use_errno=True), "renameat2", None)
    if rename is None:
        return False
    done = rename(_AT_FDCWD, os.fsencode(a), _AT_FDCWD, os.fsencode(b), _RENAME_EXCHANGE)
    code = 0 if done == 0 else ctypes.get_errno()
    if code not in (0, errno.ENOSYS, errno.EINVAL, errno.ENOTSUP):
        raise OSError(code, os.strerror(code), b)
    return code == 0


def _remove(path: str) -> None:
    if os.path.isdir(path) and not os.path.islink(path):
        shutil.rmtree(path)
    else:
        os.remove(path)


def _flush_tree(root: str) -> None:
    for directory, _, files in os.walk(root, topdown=False):
        for name in files:
            path = os.path.join(directory, name)
            # Links that lead nowhere, and pipes, may be in an archive that is changed.
            if os.path.isfile(path):
                _flush(path)
        _flush(directory)


def _flush(path: str) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
