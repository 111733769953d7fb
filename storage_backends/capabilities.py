"""Optional capabilities of storage backends: one small class each, with defaults."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from enum import IntEnum
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from storage_backends.contents import Positions
from storage_backends.contents import Sparse as Sparse
from storage_backends.errors import ArrayNotFoundError, OutputError
from storage_backends.findings import Checked as Checked
from storage_backends.findings import Examination as Examination
from storage_backends.findings import Finding as Finding
from storage_backends.findings import Piece as Piece
from storage_backends.findings import Verdict as Verdict
from storage_backends.growth import Extender as Extender
from storage_backends.growth import Growing as Growing
from storage_backends.placement import Placed as Placed
from storage_backends.placement import TableReader as TableReader
from storage_backends.placement import TableStore as TableStore

if TYPE_CHECKING:
    from storage_backends.base import ArraySpec


class RowsRead(IntEnum):
    """What a backend has read of rows: nothing, the rows as they are stored, or sorted."""

    NOTHING, AS_STORED, SORTED = range(3)


class _Store:
    path: str

    if TYPE_CHECKING:

        def spec(self, name: str) -> ArraySpec: ...


class Mapped(_Store):
    """Arrays in memory, or mapped to it.

    Examples
    --------
    >>> data.store.view("data")[:3]
    array([2., 1., 3.], dtype=float32)
    """

    def view(self, name: str) -> NDArray[Any] | None:
        """The whole array as a read-only view without a copy; None if that is impossible."""
        self.spec(name)
        return None


class Chunked(_Store):
    """Arrays stored in chunks, and information about their storage.

    Examples
    --------
    >>> data.store.chunk_length("data"), scdl.open("cells.zarr").store.chunk_length("data")
    (1, 11)
    """

    def chunk_length(self, name: str) -> int:
        """Number of items that are always read together; 1 if each item is read on its own."""
        self.spec(name)
        return 1

    @property
    def request_bytes(self) -> int:
        """Preferred size of a storage request in bytes; 0 if small requests cost little."""
        return 0

    def origin(self, prefix: str) -> tuple[Any, str]:
        """The archive that stores the matrix of a prefix, and its prefix there, as of a view."""
        return self, prefix

    def will_need(self, name: str, starts: Positions, stops: Positions) -> Any:
        """Announce ranges that will be read soon, so that a backend can prefetch them.

        Returns without waiting, and raises only errors that reading the ranges would raise. The
        caller keeps the result, which may contain fetched data, until it has read the ranges. The
        result is False if all ranges are in memory already.
        """
        self.spec(name)

    @classmethod
    def read_across(
        cls,
        stores: Sequence[Any],
        name: str,
        which: Positions,
        starts: Positions,
        stops: Positions,
        out: NDArray[Any],
    ) -> None:
        """Read half-open ranges of one array of several archives of this backend into `out`.

        Backends with chunks implement it to decode those of many archives together.

        Parameters
        ----------
        stores
            The archives, in which the array has one dtype and item shape.
        which
            Position in `stores` of the archive of each range, int64.
        starts, stops, out
            As for ``read_ranges``.
        """
        for i, store in enumerate(stores):
            chosen = which == i
            part = np.empty((int((stops - starts)[chosen].sum()), *out.shape[1:]), out.dtype)
            store.read_ranges(name, starts[chosen], stops[chosen], part)
            out[np.repeat(chosen, stops - starts)] = part

    @classmethod
    def read_rows_across(
        cls,
        stores: Sequence[Any],
        prefix: str,
        which: Positions,
        starts: Positions,
        stops: Positions,
        out: tuple[NDArray[Any], NDArray[Any]],
        *,
        ordered: bool,
    ) -> RowsRead:
        """Read the values and column ids of rows of a sparse matrix of several archives together.

        Backends that decode single rows implement it, so that rows are located once, and sorted
        while they are in the cache of the processor. By default nothing is read, and the caller
        reads the two arrays.

        Parameters
        ----------
        prefix
            Prefix of the names of the arrays ``data`` and ``indices``.
        which, starts, stops
            As for `read_across`.
        out
            Outputs of the values, and of the ids, whose integer dtype may be wider.
        ordered
            Whether to sort each row by its ids. Rows that repeat an id may be left as they are.

        Returns
        -------
        RowsRead
            SORTED if each row is known to have strictly ascending ids.
        """
        return RowsRead.NOTHING

    @classmethod
    def will_need_across(
        cls, stores: Sequence[Any], name: str, which: Positions, starts: Positions, stops: Positions
    ) -> Any:
        """Announce ranges of one array of several archives of this backend."""
        kept = []
        for i, store in enumerate(stores):
            chosen = which == i
            kept.append(store.will_need(name, starts[chosen], stops[chosen]))
        return any(one is not False for one in kept) and kept

    def describe(self, name: str) -> str:
        """Description of an array's storage for display: codecs, chunks and shards."""
        return ""

    @property
    def requires(self) -> Sequence[str]:
        """Packages that other programs need to read the archive, besides those of the format."""
        return ()

    @property
    def options(self) -> Mapping[str, Any]:
        """Keywords of ``writer.open`` for an archive stored like this one."""
        return {}

    @property
    def stored_bytes(self) -> Mapping[str, int]:
        """Bytes on disk of arrays and tables by name, as far as known."""
        return {}

    @property
    def nbytes(self) -> int:
        """Bytes on disk of the whole archive."""
        return sum(self.stored_bytes.values())


class Elements(_Store):
    """Further elements of an AnnData.

    Examples
    --------
    >>> store = scdl.open("cells.zarr").store
    >>> store.elements
    ['uns']
    >>> store.read_element("uns")
    {'title': 'six cells'}
    """

    @property
    def sparse(self) -> Mapping[str, Sparse]:
        """Sparse matrices by name, such as ``layers/spliced``; their parts are in `arrays`, too."""
        return {}

    @property
    def elements(self) -> Sequence[str]:
        """Names of the elements that are neither arrays nor tables, such as ``uns``."""
        return ()

    def read_element(self, name: str) -> Any:
        """Read an element as the object that anndata represents it by.

        Raises
        ------
        ArrayNotFoundError
            There is no such element.
        """
        known = ", ".join(self.elements) or "none"
        raise ArrayNotFoundError(f"{self.path}: there is no element {name!r}; it has: {known}")

    @property
    def unread(self) -> Sequence[str]:
        """Elements of a foreign archive that the backend cannot read."""
        return ()


class ElementsWriter:
    """Writes further elements of an AnnData.

    Examples
    --------
    >>> from storage_backends import registry
    >>> registry.backend("zarr").writer.keeps_elements
    True
    """

    path: str

    #: Whether all elements of an AnnData can be kept, not only those in the schema.
    keeps_elements: bool = False

    @classmethod
    def encoded_bytes(
        cls, rows: Mapping[str, NDArray[Any]], *, n_vars: int, **options: Any
    ) -> Mapping[str, int]:
        """Bytes that rows of matrices take on disk, by array; nothing is written.

        Backends that compress implement it, to estimate the size of archives from a sample.

        Parameters
        ----------
        rows
            ``data``, ``indices`` and ``indptr``, with the ids of each row ascending, and the same
            rows of fields, such as ``layers/counts/data``.
        n_vars
            Number of columns.
        **options
            Keywords of ``writer.open``.
        """
        return {name: values.nbytes for name, values in rows.items()}

    def write_sparse(self, name: str, sparse: Sparse) -> None:
        """Declare the arrays ``<name>/data``, ``…/indices`` and ``…/indptr`` a sparse matrix.

        It comes before they are appended. Archives have fields if their backend accepts
        ``layers/<name>`` by rows, whether or not it keeps all elements.

        Raises
        ------
        OutputError
            The backend does not keep such elements.
        """
        raise OutputError(f"{self.path}: this backend keeps no {name}")

    def end_rows(self, prefix: str, ends: NDArray[np.int64]) -> None:
        """Say where rows of a sparse matrix end that were appended, before its offsets are.

        Backends that encode single rows implement it; without it they cut rows.

        Parameters
        ----------
        prefix
            Prefix of the names of its arrays.
        ends
            Offset after the last value of each row, in ascending order.
        """

    def write_element(self, name: str, value: Any) -> None:
        """Write an element that is neither arrays nor a table, as anndata writes it.

        Raises
        ------
        OutputError
            The backend does not keep elements, or anndata cannot write this one.
        """
        raise OutputError(f"{self.path}: this backend keeps no {name}")
