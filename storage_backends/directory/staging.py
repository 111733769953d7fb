"""Atomic publication of a directory: write to a staging directory, flush, rename.

The staging directory is hidden, is in the parent directory of its target, and is locked by its
writer. Locks do not outlive their process, so the next writer recognises and removes the staging
directory of a killed one. A target that is being replaced is locked as well: only one writer can
change it at a time.
"""

from __future__ import annotations

import contextlib
import errno
import glob
import os
import shutil
import weakref
from collections.abc import Iterator
from typing import Self

from storage_backends.directory import publication
from storage_backends.directory.locks import create_locked, lock, unlock, writer_lock
from storage_backends.errors import ArchiveExistsError, refused_write


class Staging:
    """A directory that becomes `target` when it is published.

    An unpublished directory is removed when it is discarded or garbage-collected, and at the
    latest when the process ends.
    """

    def __init__(self, target: str, path: str, locks: list[int], *, replace: bool) -> None:
        self.target = target
        self.path = path
        self._replace = replace
        self._finalize = weakref.finalize(self, _clean_up, path, locks, os.getpid())

    @classmethod
    def create(cls, target: str, *, replace: bool) -> Self:
        """Create the directory, and remove leftovers of killed writers of the same target.

        Raises
        ------
        ArchiveExistsError
            `target` exists and `replace` is false.
        ArchiveLockedError
            Another process or thread is changing `target`.
        ArchiveWriteError
            The directory cannot be created.
        """
        # Replace the archive, not a link to it.
        target = os.path.realpath(target) if replace else os.path.abspath(target)
        publication.require_absent(target, replace=replace)
        with refused_write(target):
            publication.require_parent(target)
            remove_leftovers(target)
            locks = [writer_lock(target)] if replace and os.path.lexists(target) else []
            try:
                path, staging_lock = create_locked(lambda: publication.hidden_beside(target))
            except BaseException:
                _unlock_all(locks)
                raise
            return cls(target, path, [*locks, staging_lock], replace=replace)

    def publish(self) -> None:
        """Flush everything to the disk, then rename to the target atomically.

        An error leaves the target unchanged.
        """
        with refused_write(self.target):
            publication.flush_tree(self.path)
            if self._replace and os.path.lexists(self.target):
                publication.exchange(self.path, self.target)
                publication.remove(self.path)
            else:
                try:
                    publication.move(self.path, self.target)
                except OSError as error:
                    if error.errno in (errno.ENOTEMPTY, errno.EEXIST, errno.ENOTDIR):
                        raise ArchiveExistsError(
                            f"{self.target}: the path was created meanwhile; choose another path"
                        ) from error
                    raise
        self._finalize()

    def discard(self) -> None:
        """Remove the directory."""
        self._finalize()


def _clean_up(path: str, locks: list[int], owner: int) -> None:
    """Remove an unpublished directory and unlock it; a forked process only closes the locks."""
    if os.getpid() == owner:
        shutil.rmtree(path, ignore_errors=True)
        _unlock_all(locks)
    else:
        for descriptor in locks:
            os.close(descriptor)


def _unlock_all(locks: list[int]) -> None:
    for descriptor in locks:
        unlock(descriptor)


def remove_leftovers(target: str) -> None:
    """Remove the staging directories of killed writers of a target."""
    parent, name = os.path.split(target)
    publication.finish_removals(parent)
    pattern = os.path.join(glob.escape(parent), glob.escape(f".{name}.") + publication.RANDOM)
    for path in glob.glob(pattern + publication.PART + publication.SWAPPED):
        # The writer was killed during a swap by renames. Restore the target if it is missing.
        is_missing = not os.path.lexists(target)
        with _is_abandoned(path, strict=not is_missing) as is_abandoned:
            if is_abandoned and is_missing:
                os.rename(path, target)
            elif is_abandoned:
                shutil.rmtree(path, ignore_errors=True)
    for path in glob.glob(pattern + publication.PART):
        with _is_abandoned(path, strict=True) as is_abandoned:
            if is_abandoned:
                shutil.rmtree(path, ignore_errors=True)


@contextlib.contextmanager
def _is_abandoned(path: str, *, strict: bool) -> Iterator[bool]:
    """Context manager: whether the writer of a directory is dead; holds its lock meanwhile."""
    try:
        descriptor = lock(path, strict=strict)
    except (FileNotFoundError, PermissionError):
        # It is gone, or belongs to another user.
        yield False
        return
    try:
        yield descriptor is not None
    finally:
        if descriptor is not None:
            unlock(descriptor)


@contextlib.contextmanager
def rewriting(root: str) -> Iterator[str]:
    """Context manager: a copy of an archive of hard links, which replaces the archive at the end.

    To change a file, remove it and write a new one; hard links share their content.
    """
    root = os.path.realpath(root)
    staging = Staging.create(root, replace=True)
    try:
        link_tree(root, staging.path)
        yield staging.path
        staging.publish()
    finally:
        staging.discard()


def link_tree(source: str, target: str) -> None:
    """Hard-link a directory tree, or copy files that cannot be linked.

    Unlike ``shutil.copytree`` this raises the original error.
    """
    with os.scandir(source) as entries:
        for entry in entries:
            path = os.path.join(target, entry.name)
            if entry.is_dir(follow_symlinks=False):
                os.mkdir(path)
                link_tree(entry.path, path)
            else:
                _link(entry.path, path)
    shutil.copystat(source, target)


def _link(source: str, target: str) -> None:
    try:
        os.link(source, target, follow_symlinks=False)
    except OSError as error:
        if error.errno not in (errno.EPERM, errno.ENOTSUP, errno.EMLINK, errno.EXDEV):
            raise
        # The file system does not support this hard link.
        shutil.copy2(source, target, follow_symlinks=False)
