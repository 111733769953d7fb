"""Advisory locks on directories, released when a process dies; they need no lock files."""

from __future__ import annotations

import contextlib
import errno
import os
import shutil
from collections.abc import Callable, Iterator

from storage_backends.errors import ArchiveLockedError, refused_write

try:
    import fcntl
except ImportError:
    # Windows, which does not lock directories.
    fcntl = None  # type: ignore[assignment]

#: Error codes of file systems that cannot lock directories, such as some network file systems.
#: There, writers do not exclude each other, and no directory counts as left by a dead process.
_UNSUPPORTED = (errno.EBADF, errno.ENOLCK, errno.ENOSYS, errno.EOPNOTSUPP)


def lock(path: str, *, wait: bool = False, strict: bool = False) -> int | None:
    """Lock a path, normally a directory.

    Parameters
    ----------
    path
        Path to lock.
    wait
        Whether to wait while another process or thread holds the lock.
    strict
        Whether to treat the lock as held by another process if the file system does not support
        locks; by default the lock then counts as acquired.

    Returns
    -------
    int or None
        Descriptor to pass to :func:`unlock`. None if another process or thread holds the lock, or
        if the path was replaced meanwhile.

    Raises
    ------
    FileNotFoundError
        The path does not exist.
    OSError
        The path cannot be opened.
    """
    descriptor = _opened(path)
    try:
        if _flock(descriptor, wait=wait, unsupported=not strict) and is_at(descriptor, path):
            return descriptor
    except BaseException:
        os.close(descriptor)
        raise
    os.close(descriptor)
    return None


def writer_lock(path: str) -> int:
    """Lock a path for writing and return the descriptor.

    Raises
    ------
    ArchiveLockedError
        Another process or thread holds the lock.
    """
    while True:
        descriptor = _opened(path)
        try:
            acquired = _flock(descriptor)
            is_same = is_at(descriptor, path)
            if acquired and is_same:
                return descriptor
        except BaseException:
            os.close(descriptor)
            raise
        os.close(descriptor)
        # If the path was replaced meanwhile, try to lock its new directory.
        if is_same:
            raise ArchiveLockedError(
                f"{path}: another process or thread is changing this; try again when it has "
                "finished"
            )


def _opened(path: str) -> int:
    """Descriptor of a path; without locks one that stands for it, as Windows opens only files."""
    if fcntl is None:
        os.stat(path)
        return os.open(os.devnull, os.O_RDONLY)
    return os.open(path, os.O_RDONLY | os.O_NONBLOCK)


def _flock(descriptor: int, *, wait: bool = False, unsupported: bool = True) -> bool:
    """Acquire a lock; False if another holds it, `unsupported` if there are no locks."""
    if fcntl is None:
        return unsupported
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB))
    except BlockingIOError:
        return False
    except OSError as error:
        if error.errno not in _UNSUPPORTED:
            raise
        return unsupported
    return True


def create_locked(new_path: Callable[[], str], mode: int | None = None) -> tuple[str, int]:
    """Create a directory at an unused path and lock it; returns the path and the descriptor."""
    while True:
        path = new_path()
        try:
            os.mkdir(path)
            # Another process may remove it as a leftover before it is locked; then try again.
            with contextlib.suppress(FileNotFoundError):
                if mode is not None:
                    os.chmod(path, mode)
                if (descriptor := lock(path, wait=True)) is not None:
                    return path, descriptor
        except BaseException:
            shutil.rmtree(path, ignore_errors=True)
            raise


def unlock(descriptor: int) -> None:
    """Unlock and close a descriptor; effective even if a forked process still has it open."""
    if fcntl is not None:
        with contextlib.suppress(OSError):
            fcntl.flock(descriptor, fcntl.LOCK_UN)
    os.close(descriptor)


def is_at(descriptor: int, path: str) -> bool:
    """Whether a descriptor to which a path was locked is still of what is at that path."""
    if fcntl is None:
        return os.path.lexists(path)
    try:
        return os.path.samestat(os.fstat(descriptor), os.stat(path))
    except FileNotFoundError:
        return False


@contextlib.contextmanager
def write_locked(path: str) -> Iterator[None]:
    """Context manager that holds the write lock of a directory; see :func:`writer_lock`."""
    with refused_write(path):
        descriptor = writer_lock(path)
    try:
        yield
    finally:
        unlock(descriptor)
