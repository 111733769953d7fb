"""What archives have in common that are files in a directory."""

from __future__ import annotations

import errno
import os

from storage_backends.base import ArrayStore
from storage_backends.directory import locks, publication
from storage_backends.errors import ArchiveWriteError, refused_write


class DirectoryStore(ArrayStore):
    """A store whose archive is a file or a directory of this machine, if it is none elsewhere."""

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
