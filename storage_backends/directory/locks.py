"""Locks on directories: a dead process does not keep them, and they leave no file behind."""

from __future__ import annotations

import contextlib
import errno
import fcntl
import os
from collections.abc import Iterator

from storage_backends.errors import ArchiveLockedError, refused_write

#: What file systems say that do not lock directories, as some network file systems; nobody is
#: kept out there, and nothing is taken for left by a dead process.
_NO_LOCKS = (errno.EBADF, errno.ENOLCK, errno.ENOSYS, errno.EOPNOTSUPP)


def lock(path: str, *, wait: bool = False, surely: bool = False) -> int | None:
    """Lock what stands at a path until the descriptor that is returned is unlocked.

    Parameters
    ----------
    path
        Of a directory, as a rule.
    wait
        Whether to wait for another process or thread that holds it.
    surely
        Whether a file system that does not lock counts as one where another one holds it.

    Returns
    -------
    int or None
        None where another one holds it, or where something else stands at the path by now.

    Raises
    ------
    FileNotFoundError
        Nothing stands there.
    OSError
        It cannot be opened.
    """
    descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK)
    try:
        if _flock(descriptor, wait=wait, otherwise=not surely) and is_at(descriptor, path):
            return descriptor
    except BaseException:
        os.close(descriptor)
        raise
    os.close(descriptor)
    return None


def writer_lock(path: str) -> int:
    """The lock of the one who may change what stands at a path, as a descriptor.

    Raises
    ------
    ArchiveLockedError
        Another one changes it.
    """
    while True:
        descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK)
        try:
            held = _flock(descriptor)
            stands = is_at(descriptor, path)
            if held and stands:
                return descriptor
        except BaseException:
            os.close(descriptor)
            raise
        os.close(descriptor)
        # What is not there any more was replaced by one who had finished, or has that locked too.
        if stands:
            raise ArchiveLockedError(
                f"{path}: another process or thread is changing this; try again when it has "
                "finished"
            )


def _flock(descriptor: int, *, wait: bool = False, otherwise: bool = True) -> bool:
    """Lock; False where another one does, `otherwise` where the file system does not lock."""
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB))
    except BlockingIOError:
        return False
    except OSError as error:
        if error.errno not in _NO_LOCKS:
            raise
        return otherwise
    return True


def unlock(descriptor: int) -> None:
    """Unlock and close; also where a fork has the descriptor still open."""
    with contextlib.suppress(OSError):
        fcntl.flock(descriptor, fcntl.LOCK_UN)
    os.close(descriptor)


def is_at(descriptor: int, path: str) -> bool:
    """Whether what was opened stands at a path still."""
    try:
        return os.path.samestat(os.fstat(descriptor), os.stat(path))
    except FileNotFoundError:
        return False


@contextlib.contextmanager
def changing(path: str) -> Iterator[None]:
    """Hold the lock of the one who may change a directory; see :func:`writer_lock`."""
    with refused_write(path):
        descriptor = writer_lock(path)
    try:
        yield
    finally:
        unlock(descriptor)
