"""View of an archive with another of its matrices as the expression matrix."""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, Self

import numpy as np
from numpy.typing import NDArray

from scdl.archive.frames import table_of
from scdl.archive.schema import DATA, MATRIX, Info, field_element, var_table
from scdl.errors import OptionError
from scdl.sources.archive import Elements
from scdl.sources.base import genes_of
from storage_backends.base import ArrayStore, ColumnNames, Contents
from storage_backends.capabilities import Sparse
from storage_backends.compute.caching import LazyMapping, cached_property
from storage_backends.compute.delegation import delegated

if TYPE_CHECKING:
    import pyarrow as pa


class MatrixView(ArrayStore):
    """The arrays of a matrix under the names of the expression matrix, without a copy.

    obs, obsm, graphs and layers with the same genes are those of the archive; other matrices are
    left out.

    Parameters
    ----------
    store
        The archive.
    matrix
        ``X``, ``raw/X`` or ``layers/<key>``, which the archive keeps in CSR form.

    Raises
    ------
    OptionError
        The archive has no such matrix, or does not store it by rows.
    """

    def __init__(self, store: ArrayStore, matrix: str) -> None:
        self._store, self.path = store, store.path
        info = Info.from_attrs(store.attrs, store.path)
        found = store.sparse.get(matrix)
        if found is None or found.format != "csr" or len(info.blocks) > 1:
            self._refuse(info, matrix)
        self._genes = genes_of(matrix)
        self._own_var = self._genes == genes_of(info.element)
        self._names = {part: f"{matrix}/{part}" for part in MATRIX}
        n_vars = info.blocks[0].n_vars if self._own_var else self._var.num_rows
        block = {"stop": info.n_obs, "n_vars": n_vars, "label": info.blocks[0].label}
        # Conversions keep the order of columns in the rows of other matrices.
        is_sorted = info.sorts(matrix.removeprefix(field_element("")))
        self._attrs = {
            "blocks": [block],
            "sorted": is_sorted,
            "matrices": [matrix],
            "fields": list(info.fields),
        }

    def _refuse(self, info: Info, matrix: str) -> None:
        elements = Elements(self._store, info, 0)
        kinds = ("X", "raw/X", "layers/")
        there = [name for name in elements.names() if name.startswith(kinds)]
        by_rows = [
            info.element,
            *(name for name in there if (s := self._store.sparse.get(name)) and s.format == "csr"),
        ]
        if matrix in there and matrix not in by_rows:
            problem = f"{matrix} is not a sparse matrix stored by rows, which reading requires"
            remedy = f"convert the archive with matrix={matrix!r}"
        else:
            problem = f"there is no other matrix {matrix}"
            remedy = f"choose one of: {', '.join(dict.fromkeys(by_rows))}"
        raise OptionError(f"{self.path}: {problem}; {remedy}")

    @cached_property
    def _var(self) -> pa.Table:
        return table_of(self._store.read_element(self._genes))

    @classmethod
    def open(cls, path: str, *, hold: bool = True) -> Self:
        """Not supported: views are created from open archives."""
        raise OptionError(f"{path}: a view of a matrix is created from an open archive")

    identity = delegated("_store.identity")
    is_current = delegated("_store.is_current")
    fingerprint = delegated("_store.fingerprint")
    request_bytes = delegated("_store.request_bytes")

    @cached_property
    def contents(self) -> Contents:
        """Arrays of the matrix and of cells; one feature block, whose rows may be out of order."""
        there = self._store.contents
        own = {part: there.arrays[name] for part, name in self._names.items()}
        prefixes = ["graphs/", "obsm/", *(f"{name}/" for name in self.sparse)]
        others = {n: s for n, s in there.arrays.items() if n.startswith(tuple(prefixes))}
        tables = LazyMapping(self, there.tables, MatrixView._schema)
        return Contents(MappingProxyType(own | others), tables, MappingProxyType(self._attrs))

    @cached_property
    def sparse(self) -> Mapping[str, Sparse]:
        """Layers with the genes of the matrix."""
        own = field_element("") if self._genes == "var" else None
        return {n: s for n, s in self._store.sparse.items() if own and n.startswith(own)}

    def _schema(self, name: str) -> pa.Schema:
        own = name == var_table(0) and not self._own_var
        return self._var.schema if own else self._store.table_schema(name)

    @property
    def stored_bytes(self) -> Mapping[str, int]:
        """Bytes on disk by name."""
        stored = self._store.stored_bytes
        names = {name: self._names.get(name, name) for name in (*self.arrays, *self.tables)}
        return {name: stored[there] for name, there in names.items() if there in stored}

    def read_ranges(
        self, name: str, starts: NDArray[np.int64], stops: NDArray[np.int64], out: NDArray[Any]
    ) -> None:
        """As of the archive."""
        self._store.read_ranges(self._names.get(name, name), starts, stops, out)

    def view(self, name: str) -> NDArray[Any] | None:
        """As of the archive."""
        return self._store.view(self._names.get(name, name))

    def chunk_length(self, name: str) -> int:
        """As of the archive."""
        return self._store.chunk_length(self._names.get(name, name))

    def origin(self, prefix: str) -> tuple[ArrayStore, str]:
        """The archive, and the prefix of the matrix there."""
        return self._store, prefix or self._names[DATA].removesuffix(DATA)

    def will_need(self, name: str, starts: NDArray[np.int64], stops: NDArray[np.int64]) -> Any:
        """As of the archive."""
        return self._store.will_need(self._names.get(name, name), starts, stops)

    def read_table(
        self, name: str, columns: ColumnNames = None, start: int = 0, stop: int | None = None
    ) -> pa.Table:
        """As of the archive, with the genes of the matrix."""
        if name == var_table(0) and not self._own_var:
            table = self._var if columns is None else self._var.select(list(columns))
            return table.slice(start, None if stop is None else stop - start)
        return self._store.read_table(name, columns, start, stop)

    def check_removable(self) -> None:
        """Not supported: views are read-only."""
        raise OptionError(
            f"{self.path}: opened with matrix=…, which is read-only; open the archive without it "
            "to remove it"
        )

    def close(self) -> None:
        """Close the archive."""
        self._store.close()
