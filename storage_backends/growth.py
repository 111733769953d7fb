"""Adding cells to an archive: the capability of a backend."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from storage_backends.errors import OutputError

if TYPE_CHECKING:
    import numpy as np
    import pyarrow as pa

    from storage_backends.base import ArrayWriter


class Growing:
    """Adding cells to an archive without rewriting it.

    Examples
    --------
    >>> _ = scdl.convert("cells.h5ad", "growing.scdl")
    >>> with scdl.open("growing.scdl").store.grow() as writer:
    ...     writer.abort()
    """

    def grow(self) -> ArrayWriter | None:
        """Begin to add cells; None if the archive has to be rewritten instead.

        The writer adds to the arrays and tables that the archive has. ``append`` takes items of the
        dtype of the array; offsets (``indptr``) continue those stored, and may be wider.
        ``extend_table`` adds rows to a table; ``write_table`` replaces one, and ``write_element``
        an element. After ``commit``, whose attributes replace those of the archive, the archive at
        the path has the new cells, while open archives keep what they opened. Without a commit the
        archive is unchanged.

        Raises
        ------
        ArchiveChangedError
            The archive was replaced since it was opened.
        ArchiveLockedError
            Another process or thread is changing the archive.
        ArchiveWriteError
            The archive is not writable.
        """
        return None


class Extender:
    """Changes tables and arrays of an archive that grows.

    Examples
    --------
    >>> from storage_backends.growth import Extender
    >>> _ = scdl.convert("cells.h5ad", "extended.scdl")
    >>> with scdl.open("extended.scdl").store.grow() as writer:
    ...     assert isinstance(writer, Extender)
    ...     writer.abort()
    """

    path: str

    def restart(
        self, name: str, dtype: np.dtype[Any], item_shape: tuple[int, ...] | None = None
    ) -> None:
        """Write an array of the archive anew: items that are appended are its first.

        It comes before items of the array are appended. A matrix that is stored by columns has to
        be written anew with every cell, and so does a dense matrix of cells by cells; the matrix of
        the archive only grows.

        Parameters
        ----------
        dtype, item_shape
            Dtype and shape of the items; None: the shape that they have.

        Raises
        ------
        OutputError
            The archive is new, or has no such array.
        """
        raise OutputError(f"{self.path}: there is no array {name} to write anew")

    def extend_table(self, name: str, table: pa.RecordBatchReader) -> None:
        """Add rows to a table of the archive.

        Parameters
        ----------
        table
            The new rows, with the columns and types of the table. Every batch has all categories:
            those of the table, then new ones.

        Raises
        ------
        OutputError
            The archive is new.
        """
        raise OutputError(f"{self.path}: the archive is new; write the table {name} as a whole")
