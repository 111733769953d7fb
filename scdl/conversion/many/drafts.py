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
    """A hidden directory in `dest`, locked by this process and removed at the end.

    Drafts of killed processes are removed before and after. The second time is needed because
    cluster workers may still write drafts until they notice that their task was cancelled.
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
    """Create a directory for drafts; return its path and lock."""
    while True:
        path = tempfile.mkdtemp(prefix=_PREFIX, dir=dest)
        try:
            with contextlib.suppress(FileNotFoundError):
                # Cluster workers may run as other users of the same group.
                os.chmod(path, 0o770)
                if (lock := locks.lock(path, wait=True)) is not None:
                    return path, lock
            # Another process removed the directory before it was locked; try again.
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
    """Remove drafts; the path disappears atomically, so workers cannot write there meanwhile."""
    try:
        publication.remove_atomically(path)
    except OSError:
        publication.remove(path)
