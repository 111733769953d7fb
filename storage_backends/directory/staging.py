"""Publishing a directory atomically: write beside the target, flush, rename.

The staging directory is hidden, stands beside its target and is locked by its writer. A lock does
not outlive its process, so what a killed writer left is recognised, and removed by the next one.
A target that is to be replaced is locked as well, and what replaces it is: one writer at a time.
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
from storage_backends.directory.locks import lock, unlock, writer_lock
from storage_backends.errors import ArchiveExistsError, refused_write


class Staging:
    """A directory that becomes `target` when it is published.

    It is removed when it is discarded, when nothing refers to it any more, and at the latest when
    the process ends.
    """

    def __init__(self, target: str, path: str, locks: list[int], *, replace: bool) -> None:
        self.target = target
        self.path = path
        self._replace = replace
        self._end = weakref.finalize(self, _end, path, locks, os.getpid())

    @classmethod
    def create(cls, target: str, *, replace: bool) -> Self:
        """Make the directory, and remove what killed writers of the same target left.

        Raises
        ------
        ArchiveExistsError
            `target` exists and `replace` is false.
        ArchiveLockedError
            `target` is being changed by another one.
        ArchiveWriteError
            The directory cannot be made.
        """
        # What is replaced is the archive, not a link to it.
        target = os.path.realpath(target) if replace else os.path.abspath(target)
        if os.path.lexists(target) and not replace:
            raise ArchiveExistsError(
                f"{target}: something exists here already; give replace=True to replace it, or "
                "choose another path"
            )
        with refused_write(target):
            publication.require_parent(target)
            remove_leftovers(target)
            # Without `replace` nothing is there, unless another one just put it there.
            locks = [writer_lock(target)] if replace and os.path.lexists(target) else []
            try:
                path, own = _new_directory(target)
            except BaseException:
                _unlock(locks)
                raise
            return cls(target, path, [*locks, own], replace=replace)

    def publish(self) -> None:
        """Flush everything to the disk, then rename to the target in one step.

        On an error what stood at the target stands there, or nothing where nothing did.
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
                            f"{self.target}: something was put here meanwhile; choose another path"
                        ) from error
                    raise
        self._end()

    def discard(self) -> None:
        """Remove the directory."""
        self._end()


def _end(path: str, locks: list[int], owner: int) -> None:
    """Remove what has not been published, unless this is a fork of the process that writes it."""
    if os.getpid() == owner:
        shutil.rmtree(path, ignore_errors=True)
        _unlock(locks)
    else:
        for descriptor in locks:
            os.close(descriptor)


def _unlock(locks: list[int]) -> None:
    for descriptor in locks:
        unlock(descriptor)


def _new_directory(target: str) -> tuple[str, int]:
    """A staging directory, and its lock."""
    while True:
        path = publication.hidden_beside(target)
        try:
            os.mkdir(path)
            with contextlib.suppress(FileNotFoundError):
                if (own := lock(path, wait=True)) is not None:
                    return path, own
            # Another writer took it for a leftover, in the moment before it was locked.
        except BaseException:
            shutil.rmtree(path, ignore_errors=True)
            raise


def remove_leftovers(target: str) -> None:
    """Remove what killed writers of a target left, which nobody has locked."""
    parent, name = os.path.split(target)
    publication.sweep(parent)
    pattern = os.path.join(glob.escape(parent), glob.escape(f".{name}.") + publication.RANDOM)
    for path in glob.glob(pattern + publication.PART + publication.ASIDE):
        # Killed between the two renames of an exchange, or behind them.
        is_missing = not os.path.lexists(target)
        with _left(path, surely=not is_missing) as is_left:
            if is_left and is_missing:
                os.rename(path, target)
            elif is_left:
                shutil.rmtree(path, ignore_errors=True)
    for path in glob.glob(pattern + publication.PART):
        with _left(path, surely=True) as is_left:
            if is_left:
                shutil.rmtree(path, ignore_errors=True)


@contextlib.contextmanager
def _left(path: str, *, surely: bool) -> Iterator[bool]:
    """Whether the writer of a directory is not alive; nobody else may have it meanwhile."""
    try:
        descriptor = lock(path, surely=surely)
    except FileNotFoundError:
        yield False
        return
    try:
        yield descriptor is not None
    finally:
        if descriptor is not None:
            unlock(descriptor)
