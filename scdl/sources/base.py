"""What a conversion or an export reads from: an AnnData file, or an archive of any backend."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from scdl.archive.features import frame_of, table_of
from scdl.archive.schema import (
    DATA,
    MATRIX,
    OBS,
    Info,
    dense_vectors,
    graph_array,
    graph_keys,
    held,
    obsm_array,
    var_table,
)
from scdl.archive.tables import NoTable, StoredTable, TableSource
from scdl.errors import SourceError
from scdl.sources.matrices import Csr, CsrPart, Dense, Matrix, Reader, check_shape
from scdl.sources.transposed import Csc
from storage_backends.base import DTYPES, ArrayStore, Sparse
from storage_backends.compute.caching import cached_property

#: Matrices by the format of a sparse one.
BY_FORMAT = {"csr": Csr, "csc": Csc}


class SparseParts(NamedTuple):
    """A sparse matrix that is copied as it is stored, or with its rows in order.

    Attributes
    ----------
    sparse
        What it is.
    parts
        Readers of its three arrays.
    is_sorted
        Whether the rows may stay as they are.
    """

    sparse: Sparse
    parts: Mapping[str, Reader]
    is_sorted: bool = True


class Tally(NamedTuple):
    """What a conversion did to the values of a matrix; see ``ConversionReport``."""

    rows_sorted: int = 0
    duplicates_summed: int = 0
    max_rounding: float = 0.0
    is_counts: bool = True


class Source(ABC):
    """Cells that share their genes, open for reading.

    Attributes
    ----------
    path
        Where they come from, for messages.
    label
        What the archive remembers as their origin.
    matrix_name
        The matrix taken, such as ``raw/X``; of an archive, what it was taken from.
    element
        Element of the source that it is.
    matrix
        Its rows.
    obs
        The table of cells.
    labelled
        The same with a column more, which is to be written; None: as it is.
    first_row
        What is to be taken from the neighbours of a graph, which may count from other cells.
    tally
        What was done to the values of the matrix before, where that is known.
    """

    path: str
    label: str | None
    matrix_name: str
    element: str
    matrix: Matrix
    obs: TableSource
    labelled: TableSource | None = None
    first_row: int = 0
    tally: Tally = Tally()

    @property
    def n_obs(self) -> int:
        """Cells."""
        return self.obs.num_rows

    @property
    def cells(self) -> TableSource:
        """The table of cells as it is to be written."""
        return self.obs if self.labelled is None else self.labelled

    @property
    @abstractmethod
    def n_vars(self) -> int:
        """Genes."""

    @abstractmethod
    def var(self) -> pa.Table:
        """The table of genes."""

    @abstractmethod
    def graph(self, key: str) -> Matrix | None:
        """The cells x cells matrix ``obsp[key]``; None where there is none."""

    @abstractmethod
    def vectors(self, key: str) -> Reader:
        """The dense array ``obsm[key]``, one row a cell; SourceError where there is none."""

    @property
    def kept_graphs(self) -> Sequence[str]:
        """Graphs that are carried over without being asked for."""
        return ()

    @property
    def kept_vectors(self) -> Sequence[str]:
        """Dense vectors that are carried over without being asked for."""
        return ()

    @property
    def kept_dtypes(self) -> Mapping[str, np.dtype[Any]]:
        """Types of ``data``, ``indices`` and ``indptr`` that the archive gets if it is alone."""
        return {}

    @abstractmethod
    def not_carried(self, carried: set[str]) -> list[str]:
        """Elements that are not among `carried`, by name."""

    @property
    def unread(self) -> Sequence[str]:
        """What is lost even where all elements are carried over."""
        return ()

    @abstractmethod
    def names_of_rest(self) -> Sequence[str]:
        """Names of all elements of an AnnData besides the matrix, its genes and obs.

        What is in uns is named piece by piece, as ``uns/neighbors/params/method``.
        """

    @abstractmethod
    def element_of_rest(self, name: str) -> SparseParts | Matrix | Reader | Any:
        """One of these: a sparse matrix, a reader of a dense one, or else an object.

        Raises
        ------
        SourceError, ArchiveFormatError
            It cannot be read, or nobody knows its encoding.
        """

    @property
    def genes(self) -> str:
        """The table of genes that the matrix has."""
        return genes_of(self.element)


class Values:
    """An array in memory, as a reader."""

    def __init__(self, values: NDArray[Any]) -> None:
        self._values = values
        self.dtype, self.item_shape = values.dtype, values.shape[1:]

    def __len__(self) -> int:
        return len(self._values)

    def read(self, start: int, stop: int) -> NDArray[Any]:
        """Rows ``[start, stop)``."""
        return self._values[start:stop]


def in_memory(name: str, element: Any) -> SparseParts | Reader | Any:
    """What of an element that was read as a whole archives have as arrays, as those."""
    if not (is_matrix(name) or name.startswith(("obsm/", "obsp/"))):
        return element
    if getattr(getattr(element, "dtype", None), "newbyteorder", str)("=") not in DTYPES:
        return element
    if getattr(element, "format", None) in BY_FORMAT:
        parts = {part: Values(getattr(element, part)) for part in MATRIX}
        return SparseParts(Sparse(element.format, element.shape), parts)
    return Values(element) if isinstance(element, np.ndarray) else element


class StoredArray:
    """Rows ``[start, stop)`` of an array of an archive, as a reader."""

    def __init__(
        self, store: ArrayStore, name: str, start: int = 0, stop: int | None = None
    ) -> None:
        spec = store.spec(name)
        self._store, self._name, self._start = store, name, start
        self._length = (spec.length if stop is None else stop) - start
        self.dtype, self.item_shape = spec.dtype, spec.item_shape

    def __len__(self) -> int:
        return self._length

    def read(self, start: int, stop: int) -> NDArray[Any]:
        """Rows ``[start, stop)`` of those."""
        return self._store.read(self._name, self._start + start, self._start + stop)


class StoredRows(CsrPart):
    """Some rows of a sparse matrix of an archive."""

    def __init__(
        self, store: ArrayStore, prefix: str, rows: tuple[int, int], n_columns: int
    ) -> None:
        parts = {part: StoredArray(store, prefix + part) for part in MATRIX}
        super().__init__(f"{store.path}: {prefix or DATA}", parts, rows, n_columns)


class Elements:
    """What an archive holds, by the names that AnnData has for it.

    Parameters
    ----------
    store, info
        The archive.
    block
        Feature block that the matrix is of.

    Attributes
    ----------
    genes
        The table of genes of the matrix.
    """

    def __init__(self, store: ArrayStore, info: Info, block: int) -> None:
        self.store, self.info = store, info
        self.block = block
        self.n_vars = info.blocks[block].n_vars
        self.genes = genes_of(info.element)

    def names(self) -> list[str]:
        """Every element, those of the schema first."""
        return list(dict.fromkeys([OBS, self.genes, self.info.element, *held(self.store)]))

    def sparse(self, name: str) -> tuple[str, Sparse] | None:
        """What stands before the names of a sparse element's arrays, and its shape."""
        cells = self.info.n_obs
        if name == self.info.element and DATA in self.store.arrays:
            return "", Sparse("csr", (cells, self.n_vars))
        kind, _, key = name.partition("/")
        if kind == "obsp" and graph_array(key, DATA) in self.store.arrays:
            return graph_array(key, ""), Sparse("csr", (cells, cells))
        return (f"{name}/", self.store.sparse[name]) if name in self.store.sparse else None

    def is_sorted(self, name: str) -> bool:
        """Whether the rows of a sparse element may stay as they are stored.

        Where an archive has its genes in another order, that goes for all matrices of cells and
        genes.
        """
        return self.info.is_sorted or not is_matrix(name)

    def __getitem__(self, name: str) -> SparseParts | Reader | Any:
        """A sparse matrix, a reader of a dense one, or any other element as an object."""
        found = self.sparse(name)
        if found is not None:
            parts = {part: StoredArray(self.store, found[0] + part) for part in MATRIX}
            return SparseParts(found[1], parts, self.is_sorted(name))
        if name in self.store.arrays:
            return StoredArray(self.store, name)
        if name == self.genes:
            return frame_of(self.store.read_table(var_table(self.block)))
        return self.store.read_element(name)


def genes_of(matrix: str) -> str:
    """The table of genes that a matrix has."""
    return "raw/var" if matrix == "raw/X" else "var"


def is_matrix(name: str) -> bool:
    """Whether an element is a matrix of cells and genes."""
    return name in ("X", "raw/X") or name.startswith("layers/")


class ArchiveSource(Source):
    """A feature block of an archive.

    Parameters
    ----------
    store, info
        The archive.
    block
        Index of the block.
    matrix
        A matrix of an AnnData that the archive keeps besides; None: the one it is made for.

    Raises
    ------
    SourceError
        It has no such matrix.
    """

    def __init__(self, store: ArrayStore, info: Info, block: int, matrix: str | None) -> None:
        self._store = store
        self._elements = Elements(store, info, block)
        self.path = store.path
        self.label = info.blocks[block].label
        self.first_row = info.blocks[block - 1].stop if block else 0
        self._rows = self.first_row, info.blocks[block].stop
        self.obs = (
            StoredTable(store, OBS, self._rows[1], self._rows[0])
            if OBS in store.tables
            else NoTable(self._rows[1] - self._rows[0])
        )
        self.element, self.matrix_name = self._choose(matrix)
        self.matrix = self._matrix()

    def _choose(self, matrix: str | None) -> tuple[str, str]:
        """The element to take, and what it was made from."""
        info = self._elements.info
        origins = dict.fromkeys(info.matrices)
        origin = next(iter(origins)) if len(origins) == 1 else info.element
        if matrix in (None, origin):
            return info.element, origin
        known = [name for name in self._elements.names() if is_matrix(name)]
        if matrix == info.element or matrix not in known or len(info.blocks) > 1:
            there = [origin, *(name for name in known if name != info.element)]
            raise SourceError(
                f"{self.path}: there is no matrix {matrix}; the archive has: {', '.join(there)}"
            )
        return matrix, matrix

    def _matrix(self) -> Matrix:
        name = self.element
        found = self._elements.sparse(name)
        if found is not None and not found[0]:
            return StoredRows(self._store, "", self._rows, self.n_vars)
        return self._element(name, (self._rows[1] - self._rows[0], self.n_vars))

    def _element(self, name: str, shape: tuple[int, int]) -> Matrix:
        where = f"{self.path}: {name}"
        value: Any = self._elements[name]
        if getattr(value, "dtype", None) == np.dtype(bool):
            # Archives store no truth values.
            value = value.astype(np.uint8)
        element = in_memory(name, value)
        if isinstance(element, SparseParts):
            check_shape(where, element.sparse.shape, shape)
            return BY_FORMAT[element.sparse.format](where, element.parts, shape)
        if not isinstance(element, Reader) or len(element.item_shape) != 1:
            found = getattr(value, "dtype", type(value).__name__)
            raise SourceError(
                f"{where}: expected a matrix of numbers, dense or in CSR or CSC form, found {found}"
            )
        check_shape(where, (len(element), *element.item_shape), shape)
        return Dense(where, element, shape)

    @cached_property
    def n_vars(self) -> int:
        own = self.genes == self._elements.genes
        return self._elements.n_vars if own else self.var().num_rows

    def var(self) -> pa.Table:
        if self.genes == self._elements.genes:
            return self._store.read_table(var_table(self._elements.block))
        return table_of(self._store.read_element(self.genes))

    def graph(self, key: str) -> Matrix | None:
        prefix, name, n_obs = graph_array(key, ""), f"obsp/{key}", self._elements.info.n_obs
        if prefix + DATA in self._store.arrays:
            return StoredRows(self._store, prefix, self._rows, n_obs)
        # By columns, dense, or of truth values.
        store = self._store
        there = name in store.sparse or name in store.arrays or name in store.elements
        return self._element(name, (n_obs, n_obs)) if there else None

    def vectors(self, key: str) -> Reader:
        name = obsm_array(key)
        if name not in self._store.arrays:
            known = ", ".join(self.kept_vectors) or "nothing"
            raise SourceError(f"{self.path}: obsm/{key} is missing; obsm holds: {known}")
        return StoredArray(self._store, name, *self._rows)

    @property
    def kept_graphs(self) -> Sequence[str]:
        return graph_keys(self._store)

    @property
    def kept_vectors(self) -> Sequence[str]:
        return dense_vectors(self._store)

    @property
    def kept_dtypes(self) -> Mapping[str, np.dtype[Any]]:
        if self.element != self._elements.info.element or DATA not in self._store.arrays:
            return {DATA: self.matrix.dtype}
        return {part: self._store.spec(part).dtype for part in MATRIX}

    def not_carried(self, carried: set[str]) -> list[str]:
        # Of uns the pieces go together.
        names = dict.fromkeys(
            "uns" if name.startswith("uns/") else name for name in self.names_of_rest()
        )
        return [name for name in names if name not in carried] + [*self.unread]

    @property
    def unread(self) -> Sequence[str]:
        return self._store.unread

    def names_of_rest(self) -> Sequence[str]:
        own = (OBS, self.element, self.genes)
        return [name for name in self._elements.names() if name not in own]

    def element_of_rest(self, name: str) -> SparseParts | Matrix | Reader | Any:
        return self._elements[name]
