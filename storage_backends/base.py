"""The seam: an archive is named one-dimensional arrays, tables and attributes.

Everything above this interface is written once and never asks which backend is below. A backend
implements four members of :class:`ArrayStore` and four of :class:`ArrayWriter`, is announced as a
:class:`Backend`, and passes :class:`storage_backends.testing.BackendTests`. What it may do besides
is in :mod:`storage_backends.capabilities`; backends of files take most of it from
:mod:`storage_backends.directory`. ``memory.py`` is the executable specification.

The interface is synchronous; a backend hides its own threads.
"""

from __future__ import annotations

import math
import os
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from importlib import import_module
from types import TracebackType
from typing import TYPE_CHECKING, Any, Self

import numpy as np
from numpy.typing import NDArray

from storage_backends.capabilities import Checked, Chunked, Elements, ElementsWriter, Mapped, Placed
from storage_backends.errors import ArrayNotFoundError, RangeError

if TYPE_CHECKING:
    import pyarrow as pa

#: Column of a table that holds the names of its rows, which readers may set apart.
INDEX = "_index"
#: Metadata of a table's schema: what that column is called elsewhere; a backend need not keep it.
INDEX_NAME = b"index_name"
#: Metadata of a field: pandas has the column in a type of its own for nulls, also where there are
#: none; a backend need not keep it.
NULLABLE = {b"nullable": b"1"}

#: Types of numbers that every backend stores.
DTYPES = tuple(map(np.dtype, ("i1", "i2", "i4", "i8", "u1", "u2", "u4", "u8", "f2", "f4", "f8")))


@dataclass(frozen=True, slots=True)
class ArraySpec:
    """What is known of a stored array without reading it.

    Parameters
    ----------
    dtype
        Type of one number, little-endian.
    length
        Number of items along the first axis.
    item_shape
        Shape of one item: ``()`` for plain arrays, ``(50,)`` for vectors of 50 numbers.
    below
        Numbers that are read are less, since others raise ArchiveFormatError; None: not checked.
    """

    dtype: np.dtype[Any]
    length: int
    item_shape: tuple[int, ...] = ()
    below: int | None = None

    @property
    def nbytes(self) -> int:
        """Bytes of the array in memory."""
        return self.length * self.dtype.itemsize * math.prod(self.item_shape)


@dataclass(frozen=True, slots=True)
class Contents:
    """What an archive holds, known from when it is opened.

    Parameters
    ----------
    arrays
        Specification of every array by name.
    tables
        Schema of every table by name; a backend may read them when they are asked for.
    attrs
        The JSON object given to ``commit``, or what a foreign archive says of itself. A backend
        that stores the values of a row in another order than they were appended in says
        ``"sorted": false``.
    """

    arrays: Mapping[str, ArraySpec]
    tables: Mapping[str, pa.Schema]
    attrs: Mapping[str, Any]


class ArrayStore(Mapped, Chunked, Elements, Checked, Placed, ABC):
    """A committed archive, read-only.

    Stores may be used from several threads at once and after a fork; pickling carries the path
    and nothing else. Arrays and tables that a store hands out never change.
    """

    path: str

    #: What is unusual about the archive, and was believed all the same: sentences for people, of
    #: which who opens it warns.
    remarks: Sequence[str] = ()

    #: Whether what the archive says of itself disagrees with its arrays, which were believed;
    #: writing it anew mends it.
    stale: bool = False

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

    @property
    def arrays(self) -> Mapping[str, ArraySpec]:
        """Specification of every array by name."""
        return self.contents.arrays

    @property
    def tables(self) -> Sequence[str]:
        """Name of every table."""
        return list(self.contents.tables)

    @property
    def attrs(self) -> Mapping[str, Any]:
        """The attributes of the archive."""
        return self.contents.attrs

    def spec(self, name: str) -> ArraySpec:
        """The specification of one array; ArrayNotFoundError names those there are."""
        try:
            return self.arrays[name]
        except KeyError:
            known = ", ".join(sorted(self.arrays)) or "none"
            raise ArrayNotFoundError(
                f"{self.path}: there is no array {name!r}; it holds: {known}"
            ) from None

    def table_schema(self, name: str) -> pa.Schema:
        """Names and types of a table's columns, without reading it."""
        try:
            return self.contents.tables[name]
        except KeyError:
            raise self.no_table(name) from None

    def no_table(self, name: str) -> ArrayNotFoundError:
        """What to raise for a table that is not there."""
        known = ", ".join(self.tables)
        return ArrayNotFoundError(f"{self.path}: there is no table {name!r}; it holds: {known}")

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
        """Write a table, whole or as a stream of batches, once."""

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


@dataclass(frozen=True)
class Backend:
    """A storage backend, as the registry and third parties' entry points announce it.

    Parameters
    ----------
    name
        What ``backend=`` calls it.
    store_class, writer_class
        Its classes, or where they are (``module:name``), to be imported on first use.
    options
        Keywords of ``writer.open`` besides `replace`, which conversions pass on.
    suffix
        End of a path that asks for this backend where none is named.
    markers
        Files of which one stands in the directory of every archive.
    elsewhere
        Whether an archive is at a path that is no directory, such as a URL; cheap, never raises.
    """

    name: str
    store_class: type[ArrayStore] | str
    writer_class: type[ArrayWriter] | str
    options: tuple[str, ...] = ()
    suffix: str | None = None
    markers: tuple[str, ...] = ()
    elsewhere: Callable[[str], bool] | None = None

    @property
    def store(self) -> type[ArrayStore]:
        """Opens archives."""
        found: type[ArrayStore] = _imported(self.store_class)
        return found

    @property
    def writer(self) -> type[ArrayWriter]:
        """Writes archives."""
        found: type[ArrayWriter] = _imported(self.writer_class)
        return found

    def detect(self, path: str) -> bool:
        """Whether what stands at a path looks like this backend's."""
        if any(os.path.isfile(os.path.join(path, name)) for name in self.markers):
            return True
        return self.elsewhere is not None and self.elsewhere(path)


def _imported(given: Any) -> Any:
    if not isinstance(given, str):
        return given
    module, _, name = given.partition(":")
    return getattr(import_module(module), name)
