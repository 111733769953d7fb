"""The storage interface: an archive is named one-dimensional arrays, tables and attributes.

Code above this interface does not depend on the backend. A backend implements four members of
:class:`ArrayStore` and four of :class:`ArrayWriter`, is registered as a :class:`Backend`, and
passes :class:`storage_backends.testing.BackendTests`. Optional capabilities are in
:mod:`storage_backends.capabilities`; backends that store files inherit most of them from
:mod:`storage_backends.directory`. ``memory.py`` is the executable specification. The interface is
synchronous; threads are internal to a backend.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, Self

import numpy as np
from numpy.typing import NDArray

from storage_backends.backend import Backend, CacheOptions
from storage_backends.capabilities import Checked, Chunked, Elements, ElementsWriter, Mapped, Placed
from storage_backends.contents import (
    DTYPES,
    INDEX,
    INDEX_NAME,
    NULLABLE,
    ArraySpec,
    ColumnNames,
    Contents,
    Inventory,
    is_column_type,
)
from storage_backends.encoded import Encoded
from storage_backends.growth import Extender, Growing

if TYPE_CHECKING:
    import pyarrow as pa

__all__ = [
    "DTYPES", "INDEX", "INDEX_NAME", "NULLABLE",
    "ArraySpec", "ArrayStore", "ArrayWriter", "Backend", "CacheOptions", "ColumnNames", "Contents",
    "is_column_type",
]  # fmt: skip


class ArrayStore(Inventory, Mapped, Chunked, Encoded, Growing, Elements, Checked, Placed, ABC):
    """A committed archive, open for reading.

    Stores may be used from several threads at once and after a fork; a pickled store contains only
    the path. Arrays and tables that a store returns never change.

    Examples
    --------
    >>> from storage_backends import registry
    >>> store = registry.open_archive("cells.scdl")
    >>> sorted(store.arrays)[:3]
    ['data', 'graphs/connectivities/data', 'graphs/connectivities/indices']
    >>> store.read("data", 0, 3)
    array([2., 1., 3.], dtype=float32)
    >>> store.read_table("obs", ["donor"], 0, 2).to_pydict()
    {'donor': ['d1', 'd1']}
    """

    path: str

    @classmethod
    @abstractmethod
    def open(cls, path: str, *, hold: bool = True) -> Self:
        """Open the archive at `path`, in constant time and without write permission.

        Parameters
        ----------
        hold
            Whether to keep its files open, as far as the backend can, so that the archive stays
            readable and unchanged if the path is changed, replaced or removed. Otherwise reading
            missing files raises ArchiveChangedError, and opening may read only metadata.

        Raises
        ------
        ArchiveNotFoundError
            There is nothing at `path`.
        ArchiveFormatError
            `path` is not an archive of this backend, or the archive is damaged.
        """

    @property
    @abstractmethod
    def contents(self) -> Contents:
        """Arrays, tables and attributes, in constant time; ArchiveClosedError after closing."""

    @abstractmethod
    def read_ranges(
        self, name: str, starts: NDArray[np.int64], stops: NDArray[np.int64], out: NDArray[Any]
    ) -> None:
        """Read half-open ranges of one array into `out`.

        Parameters
        ----------
        name
            Name of the array.
        starts, stops
            Half-open item ranges, in any order; they may repeat, overlap and be empty.
        out
            Output of shape ``(sum(stops - starts), *item_shape)``, filled in the order of the
            ranges. It is C-contiguous and writable, and has the array's dtype, or an integer dtype
            to which the array's integers can be cast safely.

        Raises
        ------
        ArrayNotFoundError
            There is no such array.
        RangeError
            A range lies outside ``[0, length]`` or ends before it starts; nothing is clipped.
        OutputError
            `out` has the wrong dtype, shape or layout, or is read-only.
        """

    @abstractmethod
    def read_table(
        self, name: str, columns: ColumnNames = None, start: int = 0, stop: int | None = None
    ) -> pa.Table:
        """Read rows ``[start, stop)`` of columns, in the given order (default: all columns).

        Every chunk of a categorical column has all categories; without rows there is one chunk.

        Raises
        ------
        ArrayNotFoundError
            There is no such table or column.
        RangeError
            The rows lie outside the table.
        """

    def close(self) -> None:
        """Release files and memory; views that were returned stay valid."""

    def __reduce__(self) -> tuple[Any, ...]:
        return type(self).open, (self.path,)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc_info: object) -> None:
        self.close()


class ArrayWriter(ElementsWriter, Extender, ABC):
    """Writes one archive; a context manager.

    The complete archive appears at its path at ``commit``. Leaving the context without a commit
    removes everything written.

    Examples
    --------
    >>> from storage_backends import registry
    >>> with registry.create("ram:numbers", registry.backend("memory")) as writer:
    ...     writer.append("data", np.arange(2.0))
    ...     writer.append("data", np.ones(1))
    ...     writer.commit({"title": "numbers"})
    >>> registry.open_archive("ram:numbers").read("data")
    array([0., 1., 1.])
    """

    path: str

    @classmethod
    @abstractmethod
    def open(cls, path: str, *, replace: bool = False) -> Self:
        """Begin an archive at `path`.

        With `replace`, an existing archive stays readable until the commit replaces it. A backend
        may take further keywords, listed in ``options`` of its
        :class:`~storage_backends.backend.Backend`.

        Raises
        ------
        ArchiveExistsError
            `path` exists and `replace` is false.
        ArchiveWriteError
            The parent directory does not exist or is not writable.
        """

    @abstractmethod
    def append(self, name: str, values: NDArray[Any]) -> None:
        """Append items to an array; the first call creates it and sets its dtype and item shape.

        Raises
        ------
        OutputError
            The dtype or item shape differs from the first call, or the dtype is not in
            ``DTYPES``.
        ArchiveWriteError
            The operating system refuses the write, for example because the disk is full.
        """

    @abstractmethod
    def write_table(self, name: str, table: pa.Table | pa.RecordBatchReader) -> None:
        """Write a table, complete or as a stream of batches; each table is written once.

        Every batch of a stream has the same categories.

        Raises
        ------
        OutputError
            A column has a type that :func:`~storage_backends.contents.is_column_type` rejects,
            column names repeat, or the table was already written.
        """

    @abstractmethod
    def commit(self, attrs: Mapping[str, Any]) -> None:
        """Publish the archive atomically and durably; `attrs` become its JSON attributes."""

    def abort(self) -> None:
        """Remove everything written; does nothing after a commit."""

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc_info: object) -> None:
        self.abort()
