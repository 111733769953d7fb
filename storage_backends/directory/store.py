"""Archives that are directories: opened whole, held, compared with their checksums, removed."""

from __future__ import annotations

import errno
import os
from abc import abstractmethod
from collections.abc import Callable, Sequence
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
    """An archive that is a directory of this machine.

    A subclass names its files, and reads what is in the directory in :meth:`_open`. Numbers of
    directories are used again: when a file in it was written tells them apart.
    """

    #: Files of which one stands in every archive, the first of them as long as it is whole.
    markers: ClassVar[tuple[str, ...]]
    #: File of the checksums of all others.
    checksums: ClassVar[str]

    _identity: Identity | None = None

    @classmethod
    def open(cls, path: str, *, hold: bool = True) -> Self:
        """Open what stands at `path`, all of which is of one archive."""
        return cls._open_whole(path, cls._open, hold=hold)

    @classmethod
    @abstractmethod
    def _open(cls, path: str) -> Self:
        """Read what tells what the archive holds."""

    def _hold(self) -> None:
        """Keep hold of what would be read later."""

    @classmethod
    def _open_whole(cls, path: str, opened: Callable[[str], Self], *, hold: bool) -> Self:
        path = os.path.realpath(path)
        while os.path.isdir(path):
            before = identity_of(path, cls.markers)
            try:
                store = opened(path)
                if hold:
                    store._hold()
            except (ScdlError, OSError):
                if before == identity_of(path, cls.markers):
                    raise
            else:
                if before == identity_of(path, cls.markers):
                    store._identity = before
                    return store
            # The archive was replaced while it was opened: what was read may be of either.
        raise ArchiveNotFoundError(f"{path}: there is no archive here")

    @property
    def identity(self) -> Any:
        """What tells the archive that was opened from others at its path."""
        return self._identity

    @property
    def is_current(self) -> bool:
        """Whether the archive that was opened is still the one at the path."""
        return self._identity is None or identity_of(self.path, self.markers) == self._identity

    @property
    def fingerprint(self) -> str | None:
        """Hash of the checksums."""
        if self._identity is None:
            return None
        return integrity.fingerprint(self.path, self.checksums)

    # -- whether it is sound -----------------------------------------------------------------

    @classmethod
    def reads(cls, key: str) -> bool:
        """Whether an archive may have a file of some key; others are remarked on."""
        return True

    @classmethod
    def examine(cls, path: str) -> Examination:
        """Compare the files with their checksums."""
        return integrity.examine(os.path.realpath(path), cls.checksums, cls.reads)

    @classmethod
    def add_checksums(cls, path: str) -> int:
        """Give checksums to an archive that has none."""
        return integrity.add(os.path.realpath(path), cls.checksums)

    @classmethod
    def repair(cls, path: str) -> Sequence[str]:
        """Remove what killed writers left beside the archive."""
        remove_leftovers(os.path.realpath(path))
        return ()

    # -- removing ------------------------------------------------------------------------------

    def check_removable(self) -> None:
        """Raise what :meth:`remove` would raise, as far as it can be told before."""
        parent = os.path.dirname(self.path)
        if not os.path.isdir(parent):
            super().check_removable()
        self.check_current()
        if not os.access(parent, os.W_OK | os.X_OK):
            raise ArchiveWriteError(
                errno.EACCES, f"cannot remove it: {parent} cannot be written", self.path
            )

    def remove(self) -> None:
        """Close the archive and remove it from where it stands, in one step."""
        self.check_removable()
        with locks.changing(self.path):
            self.check_current()
            self.close()
            with refused_write(self.path):
                publication.take_away(self.path)
