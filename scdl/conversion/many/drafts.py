"""Hidden directories for archives that are being written."""

from __future__ import annotations

import contextlib
import glob
import os
import secrets
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
        # Cluster workers may run as other users of the same group.
        path, lock = locks.create_locked(
            lambda: os.path.join(dest, _PREFIX + secrets.token_hex(4)), 0o770
        )
    try:
        yield path
    finally:
        _remove(path)
        locks.unlock(lock)
        sweep(dest)


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
