"""Feature blocks of archives as sources."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from functools import partial
from typing import Any

import numpy as np
import pyarrow as pa

from scdl.archive.elements import dense_vectors, elements_of, graph_keys
from scdl.archive.fields import fields_of
from scdl.archive.frames import frame_of, table_of
from scdl.archive.schema import (
    DATA,
    MATRIX,
    OBS,
    Info,
    field_element,
    field_prefix,
    graph_array,
    obsm_array,
    var_table,
)
from scdl.archive.tables import NoTable, StoredTable
from scdl.errors import ArchiveFormatError, SourceError
from scdl.sources.base import Source, SparseParts, genes_of, is_matrix, matrix_of
from scdl.sources.hdf5 import RangeReader
from scdl.sources.matrices import CsrPart, Matrix, Reader, Values, check_shape, reader_part
from storage_backends import registry
from storage_backends.base import ArrayStore, is_column_type
from storage_backends.capabilities import Sparse
from storage_backends.compute.caching import cached_property
from storage_backends.errors import one_line


def stored_array(store: ArrayStore, name: str) -> RangeReader:
    """An array of an archive as a reader."""
    spec = store.spec(name)
    return RangeReader(
        partial(store.read, name),
        spec.length,
        spec.dtype,
        spec.item_shape,
        partial(store.read_ranges, name),
    )


class StoredRows(CsrPart):
    """A range of rows of a sparse matrix of an archive."""

    def __init__(
        self, store: ArrayStore, prefix: str, rows: tuple[int, int], n_columns: int
    ) -> None:
        parts = {part: stored_array(store, prefix + part) for part in MATRIX}
        super().__init__(f"{store.path}: {prefix or DATA}", parts, rows, n_columns)


class Elements:
    """Elements of an archive by their AnnData names.

    Parameters
    ----------
    store, info
        The archive.
    block
        Index of the feature block of the matrix.

    Attributes
    ----------
    genes
        Name of the table of genes of the matrix.
    """

    def __init__(self, store: ArrayStore, info: Info, block: int) -> None:
        self.store, self.info = store, info
        self.block = block
        self.n_vars = info.blocks[block].n_vars
        self.genes = genes_of(info.element)

    def names(self) -> list[str]:
        """Names of all elements, those of the schema first."""
        return list(dict.fromkeys([OBS, self.genes, self.info.element, *elements_of(self.store)]))

    def sparse(self, name: str) -> tuple[str, Sparse] | None:
        """Prefix of the array names, format and shape of a sparse element; None for others."""
        cells = self.info.n_obs
        if name == self.info.element and DATA in self.store.arrays:
            return "", Sparse("csr", (cells, self.n_vars))
        kind, _, key = name.partition("/")
        if kind == "obsp" and graph_array(key, DATA) in self.store.arrays:
            return graph_array(key, ""), Sparse("csr", (cells, cells))
        return (f"{name}/", self.store.sparse[name]) if name in self.store.sparse else None

    def is_sorted(self, name: str) -> bool:
        """Whether the rows of a sparse element need no sorting.

        If an archive stores genes unsorted, this applies to all its cells x genes matrices.
        """
        return self.info.is_sorted or not is_matrix(name)

    def __getitem__(self, name: str) -> SparseParts | Reader | Any:
        """A sparse matrix, a reader of a dense array, or any other element as an object."""
        sparse = self.sparse(name)
        if sparse is not None:
            parts = {part: stored_array(self.store, sparse[0] + part) for part in MATRIX}
            return SparseParts(sparse[1], parts, self.is_sorted(name))
        if name in self.store.arrays:
            return stored_array(self.store, name)
        if name == self.genes:
            return frame_of(self.store.read_table(var_table(self.block)))
        return self.store.read_element(name)


class ArchiveSource(Source):
    """A feature block of an archive.

    Parameters
    ----------
    store, info
        The archive.
    block
        Index of the block.
    matrix
        Another matrix of an AnnData that the archive contains; None: its main matrix.

    Raises
    ------
    SourceError
        The archive has no such matrix.
    """

    def __init__(self, store: ArrayStore, info: Info, block: int, matrix: str | None) -> None:
        self._store = store
        self._elements = Elements(store, info, block)
        self.path = store.path
        self.label = info.blocks[block].label
        self.first_row = info.blocks[block - 1].stop if block else 0
        self._rows = self.first_row, info.blocks[block].stop
        self.obs = NoTable(self._rows[1] - self._rows[0])
        if OBS in store.tables:
            columns = _carried(store.table_schema(OBS))
            self.obs = StoredTable(store, OBS, self._rows[1], self._rows[0], columns)
        self.element, self.matrix_name = self._choose(matrix)
        self.matrix = self._matrix()
        if self.genes == self._elements.genes:
            kept = [name for name in fields_of(store, info) if name in info.fields]
            self.fields = {name: self._rows_of(field_prefix(name)) for name in kept}

    def _choose(self, matrix: str | None) -> tuple[str, str]:
        """The element to read, and the name of the matrix it was converted from."""
        info = self._elements.info
        origins = dict.fromkeys(info.matrices)
        origin = next(iter(origins)) if len(origins) == 1 else info.element
        if matrix in (None, origin):
            return info.element, origin
        known = [name for name in self._elements.names() if is_matrix(name)]
        fields = [field_element(name) for name in fields_of(self._elements.store, info)]
        several = len(info.blocks) > 1 and matrix not in fields
        if matrix == info.element or matrix not in known or several:
            available = [origin, *(name for name in known if name != info.element)]
            raise SourceError(
                f"{self.path}: there is no matrix {matrix}; the archive has: {', '.join(available)}"
            )
        return matrix, matrix

    def _matrix(self) -> Matrix:
        name = self.element
        sparse = self._elements.sparse(name)
        if sparse is not None and (not sparse[0] or len(self._elements.info.blocks) > 1):
            return self._rows_of(sparse[0])
        return self._element(name, (self._rows[1] - self._rows[0], self.n_vars))

    def _rows_of(self, prefix: str) -> StoredRows:
        return StoredRows(self._store, prefix, self._rows, self.n_vars)

    def _element(self, name: str, shape: tuple[int, int]) -> Matrix:
        matrix = matrix_of(f"{self.path}: {name}", self._elements[name])
        check_shape(matrix.where, matrix.shape, shape)
        return matrix

    @cached_property
    def n_vars(self) -> int:
        own = self.genes == self._elements.genes
        return self._elements.n_vars if own else self.var().num_rows

    def var(self) -> pa.Table:
        if self.genes == self._elements.genes:
            table = self._store.read_table(var_table(self._elements.block))
        else:
            table = table_of(self._store.read_element(self.genes))
        return table.select(_carried(table.schema))

    def graph(self, key: str) -> Matrix | None:
        prefix, name, n_obs = graph_array(key, ""), f"obsp/{key}", self._elements.info.n_obs
        if prefix + DATA in self._store.arrays:
            return StoredRows(self._store, prefix, self._rows, n_obs)
        # The graph is stored as CSC, dense, or with boolean values.
        store = self._store
        exists = name in store.sparse or name in store.arrays or name in store.elements
        return self._element(name, (n_obs, n_obs)) if exists else None

    def vectors(self, key: str) -> Reader:
        name = obsm_array(key)
        if name not in self._store.arrays:
            if name in self._store.elements:
                # Boolean arrays, which archives store as numbers.
                values = np.asarray(self._store.read_element(name))
                if values.dtype == bool and values.ndim > 1:
                    return Values(values[slice(*self._rows)].astype(np.uint8))
            known = ", ".join(self.kept_vectors) or "nothing"
            raise SourceError(f"{self.path}: obsm/{key} is missing; obsm has: {known}")
        return reader_part(stored_array(self._store, name), *self._rows)

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

    @property
    def unread(self) -> Sequence[str]:
        """Unreadable elements, and columns of types that only old archives contain."""
        store, genes = self._store, self._elements.genes
        tables = {OBS: OBS, genes: var_table(self._elements.block)}
        schemas = {n: store.table_schema(t) for n, t in tables.items() if t in store.tables}
        others = [
            f"{name}/{column}"
            for name, schema in schemas.items()
            for column in schema.names
            if column not in _carried(schema)
        ]
        return [*store.unread, *others]

    def names_of_rest(self) -> Sequence[str]:
        own = (OBS, self.element, self.genes)
        return [name for name in self._elements.names() if name not in own]

    def element_of_rest(self, name: str) -> SparseParts | Matrix | Reader | Any:
        return self._elements[name]


def _carried(schema: pa.Schema) -> list[str]:
    """Names of columns whose types archives can store."""
    return [field.name for field in schema if is_column_type(field.type)]


def open_sources(path: str, matrix: str | None, stack: ExitStack) -> list[Source]:
    """Open the feature blocks of an archive as sources."""
    try:
        store = stack.enter_context(registry.open_archive(path))
    except ArchiveFormatError as error:
        raise SourceError(one_line(error)) from error
    info = Info.from_attrs(store.attrs, store.path)
    return [ArchiveSource(store, info, i, matrix) for i in range(len(info.blocks))]
