"""Base class of open archives that are local directories."""

from __future__ import annotations

import errno
import os
from abc import abstractmethod
from collections.abc import Sequence
from typing import Any, ClassVar, Self

from storage_backends.base import ArrayStore
from storage_backends.capabilities import Examination
from storage_backends.directory import integrity, locks, publication
from storage_backends.directory.files import Identity, identity_of
from storage_backends.directory.staging import remove_leftovers
from storage_backends.errors import (
    ArchiveNotFoundError,
    ArchiveWriteError,
    ScdlError,
    refused_write,
)


class DirectoryStore(ArrayStore):
    """An open archive that is a local directory.

    Subclasses set the class attributes and implement ``_open``. The inode of the directory and
    the inode and modification time of a marker file identify the archive.

    Examples
    --------
    >>> from storage_backends.directory.store import DirectoryStore
    >>> isinstance(data.store, DirectoryStore), data.store.is_current
    (True, True)
    """

    #: Names of files; every archive has at least one, an intact archive the first.
    markers: ClassVar[tuple[str, ...]]
    #: Name of the file with the checksums of all others.
    checksums: ClassVar[str]

    _identity: Identity | None = None

    @classmethod
    def open(cls, path: str, *, hold: bool = True, **options: Any) -> Self:
        """Open the archive at `path`; a replacement meanwhile cannot mix two archives.

        Parameters
        ----------
        hold
            Whether files stay readable when the archive is replaced or removed.
        **options
            Passed to ``_open``.
        """
        path = os.path.realpath(path)
        while os.path.isdir(path):
            before = identity_of(path, cls.markers)
            try:
                store = cls._open(path, **options)
                if hold:
                    store._hold()
            except (ScdlError, OSError):
                if before == identity_of(path, cls.markers):
                    raise
            else:
                if before == identity_of(path, cls.markers):
                    store._identity = before
                    return store
            # The archive was replaced while it was being opened; try again.
        raise ArchiveNotFoundError(f"{path}: there is no archive here")

    @classmethod
    @abstractmethod
    def _open(cls, path: str) -> Self:
        """Read the metadata of the archive."""

    def _hold(self) -> None:
        """Map files that are read later, so that they stay readable after their removal."""

    @property
    def identity(self) -> Any:
        """Identifies the open archive among archives at the same path."""
        return self._identity

    @property
    def is_current(self) -> bool:
        """Whether the open archive is still the one at its path."""
        return self._identity is None or identity_of(self.path, self.markers) == self._identity

    @classmethod
    def has_content(cls, path: str, fingerprint: str) -> bool:
        """Whether the archive at a path has a fingerprint, without opening it."""
        try:
            is_there = identity_of(path, cls.markers) is not None
            return is_there and integrity.fingerprint(path, cls.checksums) == fingerprint
        except (ScdlError, OSError):
            return False

    @property
    def fingerprint(self) -> str | None:
        """Hash of the checksums."""
        if self._identity is None:
            return None
        return integrity.fingerprint(self.path, self.checksums)

    # -- verification ------------------------------------------------------------------------

    @classmethod
    def reads(cls, key: str) -> bool:
        """Whether an archive may contain a file with a given key; others give a remark."""
        return True

    @classmethod
    def examine(cls, path: str) -> Examination:
        """Compare the files with their checksums."""
        return integrity.examine_files(os.path.realpath(path), cls.checksums, cls.reads)

    @classmethod
    def add_checksums(cls, path: str) -> int:
        """Add checksums to an archive that has none."""
        return integrity.add_checksums(os.path.realpath(path), cls.checksums)

    @classmethod
    def repair(cls, path: str) -> Sequence[str]:
        """Remove the staging directories of killed writers of the archive."""
        remove_leftovers(os.path.realpath(path))
        return ()

    # -- removing ------------------------------------------------------------------------------

    def check_removable(self) -> None:
        """Raise the error that :meth:`remove` would raise, as far as it is foreseeable."""
        parent = os.path.dirname(self.path)
        if not os.path.isdir(parent):
            super().check_removable()
        self.check_current()
        if not os.access(parent, os.W_OK | os.X_OK):
            raise ArchiveWriteError(
                errno.EACCES, f"cannot remove the archive: {parent} is not writable", self.path
            )

    def remove(self) -> None:
        """Close the archive and remove it atomically."""
        self.check_removable()
        with locks.write_locked(self.path):
            self.check_current()
            self.close()
            with refused_write(self.path):
                publication.remove_atomically(self.path)
