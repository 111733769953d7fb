"""The seam: an archive is named one-dimensional arrays, tables and attributes.

Everything above this interface is written once and never asks which backend is below. A backend
implements four members of :class:`ArrayStore` and four of :class:`ArrayWriter`, is announced as a
:class:`Backend`, and passes :class:`storage_backends.testing.BackendTests`. What it may do besides
is in :mod:`storage_backends.capabilities`; backends of files take most of it from
:mod:`storage_backends.directory`. ``memory.py`` is the executable specification.

The interface is synchronous; a backend hides its own threads.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from types import TracebackType
from typing import TYPE_CHECKING, Any, Self

import numpy as np
from numpy.typing import NDArray

from storage_backends.backend import Backend
from storage_backends.capabilities import Checked, Chunked, Elements, ElementsWriter, Mapped, Placed
from storage_backends.contents import (
    DTYPES,
    INDEX,
    INDEX_NAME,
    NULLABLE,
    ArraySpec,
    Contents,
    Inventory,
    is_column_type,
)
from storage_backends.errors import RangeError

if TYPE_CHECKING:
    import pyarrow as pa

# fmt: off
__all__ = [
    "DTYPES", "INDEX", "INDEX_NAME", "NULLABLE",
    "ArraySpec", "ArrayStore", "ArrayWriter", "Backend", "Contents", "is_column_type",
]
# fmt: on


class ArrayStore(Inventory, Mapped, Chunked, Elements, Checked, Placed, ABC):
    """A committed archive, read-only.

    Stores may be used from several threads at once and after a fork; pickling carries the path
    and nothing else. Arrays and tables that a store hands out never change.
    """

    path: str

    @classmethod
    @abstractmethod
    def open(cls, path: str, *, hold: bool = True) -> Self:
        """Open the archive at `path`, in constant time and without permission to write.

        Parameters
        ----------
        hold
            Whether to keep hold of its files, as far as the backend can, so that all of it stays
            what it is when the archive at the path is changed, replaced or removed; without, what
            is not there any more is an ArchiveChangedError, and nothing need be looked at yet that
            metadata does not tell.

        Raises
        ------
        ArchiveNotFoundError
            Nothing is there.
        ArchiveFormatError
            It is no archive of this backend, or a damaged one.
        """

    @property
    @abstractmethod
    def contents(self) -> Contents:
        """Arrays, tables and attributes, in constant time; ArchiveClosedError after closing."""

    @abstractmethod
    def read_ranges(
        self, name: str, starts: NDArray[np.int64], stops: NDArray[np.int64], out: NDArray[Any]
    ) -> None:
        """Read half-open ranges of one array, one after the other, into `out`.

        Parameters
        ----------
        name
            Name of the array.
        starts, stops
            Half-open item ranges, in any order; they may repeat, overlap and be empty.
        out
            C-contiguous and writable, of the array's dtype, or of a wider integer type that holds
            all of its integers, of shape ``(sum(stops - starts), *item_shape)``. It is filled in
            the order of the ranges.

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
        self,
        name: str,
        columns: Sequence[str] | None = None,
        start: int = 0,
        stop: int | None = None,
    ) -> pa.Table:
        """Read rows ``[start, stop)`` of some columns, in the order asked for (default: all).

        Every chunk of a categorical column has all of its categories, and there is a chunk also
        where there are no rows.

        Raises
        ------
        ArrayNotFoundError
            There is no such table or column.
        RangeError
            The rows lie outside the table.
        """

    def close(self) -> None:
        """Let go of files and memory; views that were handed out stay valid."""

    # -- derived ---------------------------------------------------------------------------

    def read(self, name: str, start: int = 0, stop: int | None = None) -> NDArray[Any]:
        """Read items ``[start, stop)`` of one array into new memory."""
        spec = self.spec(name)
        stop = spec.length if stop is None else stop
        if not 0 <= start <= stop <= spec.length:
            raise RangeError(
                f"{self.path}: {name}: range [{start}, {stop}) is not within [0, {spec.length}]"
            )
        out = np.empty((stop - start, *spec.item_shape), spec.dtype)
        self.read_ranges(name, np.array([start]), np.array([stop]), out)
        return out

    def __reduce__(self) -> tuple[Any, ...]:
        return type(self).open, (self.path,)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc_info: object) -> None:
        self.close()


class ArrayWriter(ElementsWriter, ABC):
    """Writes one archive; a context manager.

    An archive appears at its path whole, at ``commit``, or not at all: leaving the context
    without a commit removes what was written.
    """

    path: str

    @classmethod
    @abstractmethod
    def open(cls, path: str, *, replace: bool = False) -> Self:
        """Begin an archive that will stand at `path`.

        With `replace`, what stands there stays readable until the commit swaps the two. A backend
        may take further keywords, which it names in :attr:`Backend.options`.

        Raises
        ------
        ArchiveExistsError
            Something stands at `path`, and `replace` was not asked for.
        ArchiveWriteError
            The directory above does not exist or cannot be written.
        """

    @abstractmethod
    def append(self, name: str, values: NDArray[Any]) -> None:
        """Append items to an array; the first call creates it and fixes dtype and item shape.

        Raises
        ------
        OutputError
            dtype or item shape differ from those of the first call, or the dtype is none of
            :data:`DTYPES`.
        ArchiveWriteError
            The operating system refuses, for example because the disk is full.
        """

    @abstractmethod
    def write_table(self, name: str, table: pa.Table | pa.RecordBatchReader) -> None:
        """Write a table, whole or as a stream of batches, once.

        Every batch of a stream has the same categories.

        Raises
        ------
        OutputError
            A column is of a type that :func:`is_column_type` does not know, names of columns
            repeat, or the table was written already.
        """

    @abstractmethod
    def commit(self, attrs: Mapping[str, Any]) -> None:
        """Publish the archive atomically and durably, with `attrs` as its JSON object."""

    def abort(self) -> None:
        """Remove what was written; does nothing after a commit."""

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        exc_type: type[BaseException] | None,
        exc: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.abort()
