"""Hidden directories for archives that are being written."""

from __future__ import annotations

import contextlib
import glob
import os
import tempfile
from collections.abc import Iterator

from storage_backends.directory import locks, publication
from storage_backends.errors import refused_write

_PREFIX = ".scdl-drafts-"


@contextlib.contextmanager
def drafts_beside(dest: str) -> Iterator[str]:
    """A hidden directory beside the archives, locked by this process and removed at the end.

    Removes the drafts of killed processes before, and after. Workers of a cluster may have written
    some since, as they learn late that nobody waits for them.
    """
    with refused_write(dest):
        sweep(dest)
        path, lock = _new_drafts(dest)
    try:
        yield path
    finally:
        _remove(path)
        locks.unlock(lock)
        sweep(dest)


def _new_drafts(dest: str) -> tuple[str, int]:
    """A new directory for drafts, and its lock."""
    while True:
        path = tempfile.mkdtemp(prefix=_PREFIX, dir=dest)
        try:
            with contextlib.suppress(FileNotFoundError):
                # Workers of a cluster may be other users of the same group.
                os.chmod(path, 0o770)
                if (lock := locks.lock(path, wait=True)) is not None:
                    return path, lock
            # Another process has swept it in the moment before it was locked.
        except BaseException:
            publication.remove(path)
            raise


def sweep(dest: str) -> None:
    """Remove the drafts of processes that have ended."""
    publication.finish_removals(dest)
    for path in glob.glob(os.path.join(glob.escape(dest), _PREFIX + "*")):
        with contextlib.suppress(OSError):
            if (lock := locks.lock(path, strict=True)) is not None:
                _remove(path)
                locks.unlock(lock)


def _remove(path: str) -> None:
    """Remove drafts; the path is gone at once, so that no worker writes there meanwhile."""
    try:
        publication.remove_atomically(path)
    except OSError:
        publication.remove(path)
