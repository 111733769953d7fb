"""What a conversion reads from: an AnnData file, or an archive of any backend."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from scdl.errors import SourceError
from scdl.matrices import Bounds, Csr, Dense, Matrix, Reader
from scdl.schema import (
    DATA,
    INDICES,
    INDPTR,
    MATRIX,
    OBS,
    Info,
    graph_array,
    keys,
    obsm_array,
    var_table,
)
from scdl.tables import NoTable, StoredTable, TableSource
from scdl.transpose import Csc
from storage_backends.base import ArrayStore, ArrayWriter, Sparse

_BY = {"csr": Csr, "csc": Csc}


class SparseParts(NamedTuple):
    """A sparse matrix that is copied as it is stored."""

    sparse: Sparse
    parts: Mapping[str, Reader]


class Source(ABC):
    """Cells that share their genes, open for reading.

    Attributes
    ----------
    path
        Where they come from, for messages.
    label
        What the archive remembers as their origin.
    matrix_name
        The matrix taken, such as ``raw/X``.
    matrix
        Its rows.
    obs
        The table of cells.
    first_row
        What is to be taken from the neighbours of a graph, which may count from other cells.
    """

    path: str
    label: str | None
    matrix_name: str
    matrix: Matrix
    obs: TableSource
    first_row: int = 0

    @property
    def n_obs(self) -> int:
        """Cells."""
        return self.obs.num_rows

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
    def rest(self) -> Iterator[tuple[str, SparseParts | Reader | Any]]:
        """Every element of an AnnData besides the matrix, its genes and obs.

        Yields
        ------
        name, element
            A sparse matrix, a reader of a dense one, or any other element as an object.
        """


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


class _StoredRows(Csr):
    """Some rows of a sparse matrix of an archive, whose offsets need not begin at 0."""

    def __init__(
        self, store: ArrayStore, prefix: str, rows: tuple[int, int], n_columns: int
    ) -> None:
        start, stop = rows
        self.where, self.shape = f"{store.path}: {prefix or DATA}", (stop - start, n_columns)
        self.parts = {part: StoredArray(store, prefix + part) for part in (DATA, INDICES)}
        self.parts[INDPTR] = StoredArray(store, prefix + INDPTR, start, stop + 1)
        self.dtype = store.spec(prefix + DATA).dtype
        self.size = store.spec(prefix + DATA).length


class ArchiveSource(Source):
    """A feature block of an archive.

    Parameters
    ----------
    store
        The archive.
    block
        Index of the block.
    matrix
        A matrix of an AnnData that the archive keeps besides; None: the one it is made for.
    """

    def __init__(self, store: ArrayStore, info: Info, block: int, matrix: str | None) -> None:
        self._store, self._block = store, block
        self.path = store.path
        self.label = info.blocks[block].label
        self._alone = len(info.blocks) == 1
        self.first_row = info.blocks[block - 1].stop if block else 0
        self._rows = self.first_row, info.blocks[block].stop
        self._n_cells = info.n_obs
        self._n_vars = info.blocks[block].n_vars
        self.obs = self._obs(info)
        taken = dict.fromkeys(info.matrices)
        own = next(iter(taken)) if len(taken) == 1 else "X"
        self.matrix_name = own if matrix is None else matrix
        self._is_own = self.matrix_name == own and DATA in store.arrays
        self.matrix = self._matrix()

    @property
    def n_vars(self) -> int:
        return self._n_vars

    def _obs(self, info: Info) -> TableSource:
        if OBS not in self._store.tables:
            return NoTable(self._rows[1] - self._rows[0])
        return StoredTable(self._store, OBS, self._rows[1], self._rows[0])

    def _matrix(self) -> Matrix:
        if self._is_own:
            return _StoredRows(self._store, "", self._rows, self._n_vars)
        name, where = self.matrix_name, f"{self.path}: {self.matrix_name}"
        shape = (self._rows[1] - self._rows[0], self._n_vars)
        if name in self._store.arrays and self._alone:
            return Dense(where, StoredArray(self._store, name), shape)
        if name not in self._store.sparse or not self._alone:
            there = [n for n in (*self._store.sparse, *self._store.arrays) if "X" in n]
            raise SourceError(
                f"{self.path}: there is no matrix {name}; the archive was made from "
                f"{', '.join(there) or 'one'}"
            )
        sparse = self._store.sparse[name]
        parts = {part: StoredArray(self._store, f"{name}/{part}") for part in MATRIX}
        return _BY[sparse.format](where, parts, shape)

    def var(self) -> pa.Table:
        return self._store.read_table(var_table(self._block))

    def graph(self, key: str) -> Matrix | None:
        prefix = graph_array(key, "")
        if prefix + DATA not in self._store.arrays:
            return None
        return _StoredRows(self._store, prefix, self._rows, self._n_cells)

    def vectors(self, key: str) -> Reader:
        name = obsm_array(key)
        if name not in self._store.arrays:
            known = ", ".join(keys(self._store.arrays, "obsm")) or "nothing"
            raise SourceError(f"{self.path}: obsm/{key} is missing; obsm holds: {known}")
        return StoredArray(self._store, name, *self._rows)

    @property
    def kept_graphs(self) -> Sequence[str]:
        return keys(self._store.arrays, "graphs")

    @property
    def kept_vectors(self) -> Sequence[str]:
        found = keys(self._store.arrays, "obsm")
        return [k for k in found if obsm_array(k).rpartition("/")[0] not in self._store.sparse]

    @property
    def kept_dtypes(self) -> Mapping[str, np.dtype[Any]]:
        if not self._is_own:
            return {DATA: self.matrix.dtype}
        return {part: self._store.spec(part).dtype for part in MATRIX}

    def not_carried(self, carried: set[str]) -> list[str]:
        names = [*self._store.sparse, *self._store.elements]
        within = {f"{name}/{part}" for name in self._store.sparse for part in MATRIX}
        names += [n for n in self._store.arrays if n not in {*within, *MATRIX}]
        kept = {f"graphs/{key}" for key in self.kept_graphs} | carried | {self.matrix_name}
        return [name for name in names if name not in kept]

    def rest(self) -> Iterator[tuple[str, SparseParts | Reader | Any]]:
        store = self._store
        within = set(MATRIX)
        for name, sparse in store.sparse.items():
            parts = {part: StoredArray(store, f"{name}/{part}") for part in MATRIX}
            within |= {f"{name}/{part}" for part in MATRIX}
            yield name, SparseParts(sparse, parts)
        for name in store.arrays:
            if name not in within and not name.startswith("graphs/"):
                yield name, StoredArray(store, name)
        for key in self.kept_graphs:
            # Backends that know no sparse matrices but graphs.
            if f"graphs/{key}" not in store.sparse:
                n_obs = self.n_obs
                parts = {part: StoredArray(store, graph_array(key, part)) for part in MATRIX}
                yield f"graphs/{key}", SparseParts(Sparse("csr", (n_obs, n_obs)), parts)
        for name in store.elements:
            yield name, store.read_element(name)


def write_rest(source: Source, writer: ArrayWriter, bounds: Bounds) -> None:
    """Copy every element besides the matrix, its genes and obs, in bounded memory where large."""
    for name, element in source.rest():
        if isinstance(element, SparseParts):
            writer.write_sparse(name, element.sparse)
            for part, reader in element.parts.items():
                _copy(writer, f"{name}/{part}", reader, bounds)
        elif hasattr(element, "read") and hasattr(element, "item_shape"):
            _copy(writer, name, element, bounds)
        else:
            writer.write_element(name, element)


def _copy(writer: ArrayWriter, name: str, reader: Reader, bounds: Bounds) -> None:
    rows = max(1, bounds.values // max(int(np.prod(reader.item_shape)), 1))
    for start in range(0, max(len(reader), 1), rows):
        values = reader.read(start, min(start + rows, len(reader)))
        # Archives store no booleans.
        writer.append(name, values.astype(np.uint8) if values.dtype == bool else values)
