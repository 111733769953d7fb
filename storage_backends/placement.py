"""Optional capabilities of the archive at a path: its identity, its tables alone, its removal."""

from __future__ import annotations

import errno
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, Protocol

from storage_backends.errors import ArchiveChangedError, ArchiveWriteError, ScdlError

if TYPE_CHECKING:
    import pyarrow as pa

    from storage_backends.base import ArrayStore
    from storage_backends.compute.steps import Steps


class TableReader(Protocol):
    """An object with tables to read: an archive, a part of one, or several.

    Examples
    --------
    >>> data.store.read_table("var/0", ["_index"]).num_rows
    4
    """

    path: str

    def table_schema(self, name: str, /) -> pa.Schema:
        """Names and types of the columns of a table."""

    def read_table(self, name: str, /, columns: Sequence[str] | None = None) -> pa.Table:
        """Read some or all columns of a table."""


class TableStore(TableReader, Protocol):
    """The tables of one archive.

    Examples
    --------
    >>> import os
    >>> store = data.store
    >>> tables = store.open_tables(os.path.realpath("cells.scdl"), store.fingerprint, 6, 11)
    >>> tables.table_fingerprint("obs") == store.table_fingerprint("obs")
    True
    """

    def table_fingerprint(self, name: str, /) -> str | None:
        """Hash that only equal tables share; None if it takes as long as reading the table."""

    def reading(self, name: str, /, columns: Sequence[str] | None = None) -> Steps[pa.Table]:
        """As :meth:`read_table`, by a generator that returns the table.

        Each step may be done for several archives before the next.
        """


class Placed:
    """Identity of the archive at a path, and its removal.

    Examples
    --------
    >>> store = data.store
    >>> store.is_current, store.has_content("cells.scdl", store.fingerprint)
    (True, True)
    """

    path: str

    @classmethod
    def open_tables(
        cls, path: str, fingerprint: str, n_obs: int, n_values: int
    ) -> TableStore | None:
        """Open only the tables of an archive that was described before, which is faster.

        Parameters
        ----------
        path
            Absolute path without symbolic links.
        fingerprint, n_obs, n_values
            :attr:`fingerprint`, number of cells and number of stored values, when the archive was
            described.

        Returns
        -------
        TableStore or None
            Reading raises ArchiveChangedError if the archive is replaced meanwhile. None if the
            archive has another fingerprint now, or has to be opened whole.
        """
        return None

    @property
    def identity(self) -> Any:
        """Identifies the open archive among archives at the same path; None if unknown."""
        return None

    @property
    def is_current(self) -> bool:
        """Whether the open archive is still the one at its path, as far as is known."""
        return True

    def check_current(self) -> None:
        """Raise ArchiveChangedError if the archive at the path is not the open one."""
        if not self.is_current:
            raise ArchiveChangedError(
                f"{self.path}: the archive was changed, moved or replaced since it was opened, and "
                "the archive at this path was left unchanged; open it again"
            )

    @classmethod
    def has_content(cls, path: str, fingerprint: str) -> bool:
        """Whether the archive at a path has a :attr:`fingerprint`; raises no errors."""
        try:
            store: ArrayStore = cls.open(path, hold=False)  # type: ignore[attr-defined]
        except (ScdlError, OSError):
            return False
        with store:
            return store.fingerprint == fingerprint

    @property
    def fingerprint(self) -> str | None:
        """Hash of the content; None if computing it would require reading the archive."""
        return None

    def table_fingerprint(self, name: str, /) -> str | None:
        """Hash that only equal tables share; None if it takes as long as reading the table."""
        return None

    def reading(self, name: str, /, columns: Sequence[str] | None = None) -> Steps[pa.Table]:
        """As ``read_table``, by a generator that returns the table.

        Each step may be done for several archives before the next.
        """
        yield
        table: pa.Table = self.read_table(name, columns)  # type: ignore[attr-defined]
        return table

    def check_removable(self) -> None:
        """Raise the error that :meth:`remove` would raise, as far as can be foreseen."""
        raise ArchiveWriteError(
            errno.ENOENT, "only archives in the local file system can be removed", self.path
        )

    def remove(self) -> None:
        """Close the archive and remove it atomically.

        Raises
        ------
        ArchiveChangedError
            The archive was replaced by another one.
        ArchiveLockedError
            Another process or thread is changing the archive.
        ArchiveWriteError
            The parent directory is not writable, or the backend does not support removal.
        """
        self.check_removable()
