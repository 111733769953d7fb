"""The seam: an archive is named one-dimensional arrays, tables and attributes.

Everything above this interface is written once and never asks which backend is below. A backend
implements :class:`ArrayStore` and :class:`ArrayWriter`, is announced as a :class:`Backend`, and
passes :class:`storage_backends.testing.BackendTests`. ``memory.py`` is the executable
specification.

The interface is synchronous; a backend hides its own threads.
"""

from __future__ import annotations

import errno
import math
import os
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from importlib.metadata import version
from types import TracebackType
from typing import TYPE_CHECKING, Any, NamedTuple, Self

import numpy as np
from numpy.typing import NDArray

from storage_backends.capabilities import Examination, Finding, Sparse, Verdict
from storage_backends.errors import (
    ArchiveChangedError,
    ArchiveWriteError,
    ArrayNotFoundError,
    BackendOptionError,
    OutputError,
    RangeError,
)
from storage_backends.other_formats import check_target

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


class ArrayStore(ABC):
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

    @property
    def identity(self) -> Any:
        """What tells the archive that was opened from others at its path; None where unknown."""
        return None

    @property
    def is_current(self) -> bool:
        """Whether the archive that was opened is still the one at the path, as far as is known."""
        return True

    def check_current(self) -> None:
        """ArchiveChangedError where the archive at the path is not the one that was opened."""
        if not self.is_current:
            raise ArchiveChangedError(
                f"{self.path}: the archive was changed, moved or replaced since it was opened, and "
                "what stands here now is left alone; open it again"
            )

    @property
    def fingerprint(self) -> str | None:
        """What archives of another content do not have; None where it takes reading all to know."""
        return None

    @classmethod
    @abstractmethod
    def detect(cls, path: str) -> bool:
        """Whether what stands at `path` looks like this backend's; cheap, and never raises."""

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
    def arrays(self) -> Mapping[str, ArraySpec]:
        """Specification of every array by name."""

    @property
    @abstractmethod
    def tables(self) -> Sequence[str]:
        """Name of every table."""

    @property
    @abstractmethod
    def attrs(self) -> Mapping[str, Any]:
        """The JSON object given to ``commit``, or what a foreign archive says of itself.

        A backend that stores the values of a row in another order than they were appended in says
        ``"sorted": false``.
        """

    @property
    @abstractmethod
    def stored_bytes(self) -> Mapping[str, int]:
        """Bytes on disk of every array and table by name."""

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

    def chunk_length(self, name: str) -> int:
        """Items that are read as one, whichever of them is asked for; 1: each on its own."""
        self.spec(name)
        return 1

    def will_need(self, name: str, starts: NDArray[np.int64], stops: NDArray[np.int64]) -> None:
        """Tell that ranges, which rise, will be read soon; a backend may begin to fetch them.

        Returns without waiting for them, and raises nothing that reading them would not.
        """
        self.spec(name)

    @abstractmethod
    def table_schema(self, name: str) -> pa.Schema:
        """Names and types of a table's columns, without reading it."""

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

    @property
    def nbytes(self) -> int:
        """Bytes on disk of the whole archive."""
        return sum(self.stored_bytes.values())

    def describe(self, name: str) -> str:
        """How an array is stored, for people: its codecs, chunks and shards."""
        return ""

    @property
    def requires(self) -> Sequence[str]:
        """Packages that other programs need to read what is stored, besides those of the format."""
        return ()

    @property
    def options(self) -> Mapping[str, Any]:
        """Keywords of ``Backend.create`` for an archive that is stored as this one is."""
        return {}

    # -- the rest of an AnnData, where a backend keeps it ------------------------------------

    @property
    def sparse(self) -> Mapping[str, Sparse]:
        """Sparse matrices by name, such as ``layers/spliced``; their three arrays are arrays."""
        return {}

    @property
    def elements(self) -> Sequence[str]:
        """Name of every element that is neither arrays nor a table, such as ``uns``."""
        return ()

    def read_element(self, name: str) -> Any:
        """An element as the object that anndata makes of it.

        Raises
        ------
        ArrayNotFoundError
            There is no such element.
        """
        known = ", ".join(self.elements) or "none"
        raise ArrayNotFoundError(f"{self.path}: there is no element {name!r}; it holds: {known}")

    @property
    def unread(self) -> Sequence[str]:
        """What a foreign archive holds besides, and the backend cannot read."""
        return ()

    # -- whether an archive is sound; by path, since a damaged one may not open ----------------

    @classmethod
    def examine(cls, path: str) -> Examination:
        """What the files at `path` say before they are read; raises nothing for damaged ones."""
        return Examination(
            [Finding(f"{path}: this backend keeps no checksums of bytes", Verdict.UNKNOWN)]
        )

    @classmethod
    def repair(cls, path: str) -> Sequence[str]:
        """Mend what can be mended without guessing, atomically; says what was done.

        Raises
        ------
        ArchiveFormatError
            The archive cannot be opened.
        ArchiveWriteError
            It cannot be written.
        """
        return ()

    @classmethod
    def add_checksums(cls, path: str) -> int:
        """Give checksums to an archive that has none, atomically; returns the bytes covered.

        Raises
        ------
        OutputError
            It has some, or the backend keeps none.
        ArchiveWriteError
            The archive cannot be written.
        """
        raise OutputError(f"{path}: this backend keeps no checksums of bytes")

    def close(self) -> None:  # noqa: B027 - a store without resources has nothing to do
        """Let go of files and memory; views that were handed out stay valid."""

    # -- derived ---------------------------------------------------------------------------

    def check_removable(self) -> None:
        """Raise what :meth:`remove` would raise, as far as it can be told before."""
        raise ArchiveWriteError(
            errno.ENOENT, "only what is in the file system here is removed", self.path
        )

    def remove(self) -> None:
        """Close the archive and remove it from where it stands, in one step.

        Raises
        ------
        ArchiveChangedError
            Another one stands there by now.
        ArchiveLockedError
            Another process or thread is changing it.
        ArchiveWriteError
            The directory that it is in cannot be written, or the backend removes none.
        """
        self.check_removable()

    def view(self, name: str) -> NDArray[Any] | None:
        """The whole array as a read-only view without a copy, where a backend can offer one."""
        self.spec(name)
        return None

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

    def spec(self, name: str) -> ArraySpec:
        """The specification of one array; ArrayNotFoundError names those there are."""
        try:
            return self.arrays[name]
        except KeyError:
            known = ", ".join(sorted(self.arrays)) or "none"
            raise ArrayNotFoundError(
                f"{self.path}: there is no array {name!r}; it holds: {known}"
            ) from None

    def __reduce__(self) -> tuple[Any, ...]:
        return type(self).open, (self.path,)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc_info: object) -> None:
        self.close()


class ArrayWriter(ABC):
    """Writes one archive; a context manager.

    An archive appears at its path whole, at ``commit``, or not at all: leaving the context
    without a commit removes what was written.
    """

    path: str

    #: Whether everything that an AnnData consists of can be kept, not only what the schema names.
    keeps_elements: bool = False

    @classmethod
    @abstractmethod
    def create(cls, path: str, *, replace: bool = False) -> Self:
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

    def write_sparse(self, name: str, sparse: Sparse) -> None:
        """Say what three arrays ``<name>/data``, ``…/indices`` and ``…/indptr`` are.

        Raises
        ------
        OutputError
            The backend keeps no such elements.
        """
        raise OutputError(f"{self.path}: this backend keeps no {name}")

    def write_element(self, name: str, value: Any) -> None:
        """Write an element that is neither arrays nor a table, as anndata writes it.

        Raises
        ------
        OutputError
            The backend keeps no elements, or anndata does not know how to write this one.
        """
        raise OutputError(f"{self.path}: this backend keeps no {name}")

    @abstractmethod
    def commit(self, attrs: Mapping[str, Any]) -> None:
        """Publish the archive atomically and durably, with `attrs` as its JSON object."""

    @abstractmethod
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


class Backend(NamedTuple):
    """A storage backend, as the registry and third parties' entry points announce it.

    Attributes
    ----------
    options
        Further keywords of ``writer.create``.
    suffix
        End of a path that asks for this backend where none is named.
    """

    name: str
    store: type[ArrayStore]
    writer: type[ArrayWriter]
    options: tuple[str, ...] = ()
    suffix: str | None = None

    def create(self, path: str, *, replace: bool = False, **options: Any) -> ArrayWriter:
        """Begin an archive.

        Raises
        ------
        BackendOptionError
            This backend does not take an option.
        PathError
            The name of the path says another format.
        """
        if replace or not os.path.lexists(path):
            check_target(path, self.suffix)
        for name in options:
            if name not in self.options:
                raise BackendOptionError(
                    f"{path}: the storage backend {self.name} has no option {name!r}; it takes: "
                    f"{', '.join(self.options) or 'none'}"
                    + ("; end the path in .zarr for that" if name == "compression" else "")
                )
        return self.writer.create(path, replace=replace, **options)


def is_nullable(field: pa.Field) -> bool:
    """Whether a column is of a type of its own for nulls."""
    return (field.metadata or {}).items() >= NULLABLE.items()


def is_for_nulls(na_value: object) -> bool:
    """Whether anndata makes a column of an encoding for nulls one of pandas' types for them.

    Plain text of pandas 3 has that encoding too, with NaN for what is missing; pandas 2 has no such
    text, and gets the type for nulls.

    Parameters
    ----------
    na_value
        Attribute ``na-value`` of the column; None: there is none.
    """
    plain = na_value in ("NaN", b"NaN")
    return not plain or int(version("pandas").partition(".")[0]) < 3
