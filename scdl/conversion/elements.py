"""Writing the elements of an AnnData other than its matrix to an archive that keeps them.

Elements are checked before they are written, so that every accepted element can be read back.
Elements that archives cannot store are left out and reported; elements whose shape does not match
the cells and genes are an error.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping, Sequence
from typing import Any

import numpy as np

from scdl.archive import csr
from scdl.archive.csr import SparseRows
from scdl.archive.schema import DATA, INDICES, INDPTR, MATRIX
from scdl.archive.tables import TableInMemory, row_names
from scdl.conversion.row_order import RowOrder
from scdl.errors import ArchiveFormatError, MissingFilterError, OutputError, SourceError
from scdl.sources.anndata_elements import is_accepted
from scdl.sources.base import BY_FORMAT, Source, SparseParts, axes_of, in_memory
from scdl.sources.matrices import Bounds, Matrix, Reader, check_ids, check_offsets, pieces
from storage_backends.base import DTYPES, ArrayWriter
from storage_backends.capabilities import Sparse

_GENES = ("var", "raw/var")


def write_rest(
    source: Source,
    writer: ArrayWriter,
    bounds: Bounds,
    graphs: Sequence[str] = (),
    order: RowOrder | None = None,
    without: Collection[str] = (),
) -> list[str]:
    """Copy every element except the matrix, its genes and obs; large ones in bounded memory.

    Parameters
    ----------
    graphs
        Keys of obsp to store as CSR, in which neighbours are read, even if the source stores them
        as CSC or dense.
    order
        Order in which cells are written. Matrices of cells are written as CSR if it is not that of
        the source.
    without
        Names of elements that are written otherwise.

    Returns
    -------
    list of str
        Names of the elements that were left out because they cannot be read or written.

    Raises
    ------
    SourceError
        The shape of an element does not match obs and var, or an index of a sparse element is out
        of range.
    MissingFilterError
        An element is compressed with a filter that is not installed.
    """
    return _ElementWriter(source, writer, bounds, graphs, order or RowOrder()).write(without)


class _LeftOutError(Exception):
    """An element cannot be stored by an archive, or cannot be read from the source."""


class _ElementWriter:
    """Writes the elements of one source."""

    def __init__(
        self,
        source: Source,
        writer: ArrayWriter,
        bounds: Bounds,
        graphs: Sequence[str],
        order: RowOrder,
    ) -> None:
        self._source, self._writer, self._bounds = source, writer, bounds
        self._order = order
        self._by_row = {f"obsp/{key}" for key in graphs}
        #: Number of cells, and number of genes of each existing var table.
        self._lengths = {"obs": source.n_obs, source.genes: source.n_vars}
        self._names: dict[str, list[str]] = {}

    def write(self, without: Collection[str]) -> list[str]:
        """Write all elements that can be written; return the names of the others."""
        rest = [name for name in self._source.names_of_rest() if name not in without]
        # Tables of genes come first: they are needed to check elements along genes.
        names = sorted(rest, key=lambda name: name not in _GENES)
        return [name for name in names if not self._is_written(name)]

    def _is_written(self, name: str) -> bool:
        try:
            element = self._read(name)
            if element is not None:
                self._write(name, element)
        except _LeftOutError:
            return False
        except OutputError:
            self._lengths.pop(name, None)
            return False
        return True

    def _read(self, name: str) -> Any:
        """Read and check an element; None if it needs no further writing."""
        in_uns = name.partition("/")[0] == "uns"
        axes = () if in_uns else axes_of(name)
        if axes is None or not all(axis in self._lengths or axis == name for axis in axes):
            raise _LeftOutError
        try:
            element: Any = in_memory(name, self._source.element_of_rest(name))
        except MissingFilterError:
            raise
        except (SourceError, ArchiveFormatError) as error:
            raise _LeftOutError from error
        if in_uns:
            # Includes None, for which anndata has an encoding.
            self._write(name, element)
            return None
        if name in _GENES:
            self._take_genes(name, element)
        elif element is not None and not self._fits(name, element, axes):
            raise _LeftOutError
        if hasattr(element, "columns") and name.startswith(("obsm/", "varm/", "raw/varm/")):
            import pandas as pd

            # anndata also compares the dtypes of indexes. Those of obs and var have the dtype that
            # pandas infers from a list of str.
            names = pd.Index(list(element.index), name=element.index.name)
            element = element.set_axis(names, axis=0)
        return element

    def _take_genes(self, name: str, element: Any) -> None:
        """Record the number of genes and their names."""
        if not hasattr(element, "columns"):
            raise _LeftOutError
        self._lengths[name], self._names[name] = len(element), list(element.index)
        if name == "raw/var":
            # raw/var is kept only together with raw/X.
            try:
                if "raw/X" not in self._source.names_of_rest() or self._read("raw/X") is None:
                    raise _LeftOutError
            except _LeftOutError:
                del self._lengths[name]
                raise

    def _fits(self, name: str, element: Any, axes: tuple[str, ...]) -> bool:
        """Whether an AnnData can contain the element; raise SourceError if the shape is wrong."""
        where = f"{self._source.path}: {name}"
        shape = _shape(element)
        expected = tuple(self._lengths[axis] for axis in axes)
        if shape is None:
            return False
        if (shape[:1] if len(axes) == 1 else shape) != expected:
            if name == "X" and self._source.element != name:
                # Some published files have an invalid X beside a valid raw.
                return False
            by = " and ".join(dict.fromkeys(axes))
            size = f"{expected} by {by}" if len(axes) > 1 else f"{expected[0]} rows, as {by} has"
            raise SourceError(
                f"{where} has shape {shape}, expected {size}; correct the source, or pass "
                "only_matrix=True to leave out such elements"
            )
        if hasattr(element, "columns") and list(element.index) != self._names_of(axes[0]):
            raise SourceError(
                f"{where} is a table whose row names differ from those of {axes[0]}; correct the "
                "source, or pass only_matrix=True to leave out such elements"
            )
        if isinstance(element, SparseParts | Matrix):
            # Once begun, a sparse element cannot be left out.
            return _dtypes(element, element)[DATA].newbyteorder("=") in DTYPES
        plain = isinstance(element, Reader) and len(shape) == 2
        return plain or is_accepted(name, element)

    def _names_of(self, axis: str) -> list[str]:
        """Names of the cells or genes along an axis."""
        if axis not in self._names:
            genes = TableInMemory(self._source.var())
            self._names[axis] = row_names(self._source.obs if axis == "obs" else genes)
        return self._names[axis]

    def _order_of(self, name: str) -> RowOrder:
        """Order of the leading axis of an element."""
        return self._order if (axes_of(name) or ("",))[0] == "obs" else RowOrder()

    def _write(self, name: str, element: Any) -> None:
        order = self._order_of(name)

        def columns(values: Any) -> Any:
            is_moved = order.moves and axes_of(name) == ("obs", "obs")
            return values[:, order.sources] if is_moved else values

        has_rows = isinstance(element, SparseParts) and element.sparse.format == "csr"
        matrix = element if isinstance(element, Matrix) else None
        if name in self._by_row and not has_rows:
            matrix = self._source.graph(name.removeprefix("obsp/")) or matrix
        if matrix is not None:
            self._write_rows(name, matrix, element)
        elif isinstance(element, SparseParts):
            self._write_sparse(name, element)
        elif isinstance(element, Reader):
            values = (columns(piece) for piece in pieces(element, self._bounds.values))
            like = np.empty((0, *element.item_shape), element.dtype)
            for items in order.items(values, like):
                self._writer.append(name, items)
        else:
            if order.moves:
                element = columns(getattr(element, "iloc", element)[order.sources])
            self._writer.write_element(name, element)

    def _write_sparse(self, name: str, element: SparseParts) -> None:
        sparse, parts, _ = element
        where = self._where(name)
        if self._order_of(name).moves or sparse.format == "csr":
            matrix = BY_FORMAT[sparse.format](where, parts, sparse.shape)
            self._write_rows(name, matrix, element)
            return
        check_offsets(where, parts, sparse.shape[1], "columns")
        self._writer.write_sparse(name, sparse)
        last = 0
        for part, reader in parts.items():
            for values in pieces(reader, self._bounds.values):
                if part == INDICES:
                    check_ids(where, values, sparse.shape[0], part)
                elif part == INDPTR:
                    if int(values[0]) < last or (values[1:] < values[:-1]).any():
                        raise SourceError(f"{where}: its offsets decrease; the source is damaged")
                    last = int(values[-1])
                self._writer.append(f"{name}/{part}", values)

    def _write_rows(self, name: str, matrix: Matrix, element: Any) -> None:
        """Write a matrix in CSR form, with sorted column ids and repeated entries summed.

        What needs no sorting, and edges of a graph, are written unchanged, in the order of the
        source, including repeated entries.
        """
        stored, dtypes = _stored_name(name), _dtypes(matrix, element)
        order = self._order_of(name)
        self._writer.write_sparse(stored, Sparse("csr", matrix.shape))
        is_clean = isinstance(element, SparseParts) and element.is_sorted

        def rows() -> Iterator[SparseRows]:
            for block in matrix.blocks(self._bounds):
                if not (is_clean or name.startswith("obsp/")):
                    block = csr.clean(block, matrix.shape[1], self._where(name))
                ids = block.indices
                if order.moves and axes_of(name) == ("obs", "obs"):
                    ids = order.places(ids.astype(np.int64))
                yield block._replace(indices=ids.astype(dtypes[INDICES], copy=False))

        blocks = order.rows(rows(), (dtypes[DATA], dtypes[INDICES]), matrix.size)
        csr.write_rows(self._writer, f"{stored}/", blocks, [dtypes[part] for part in MATRIX])

    def _where(self, name: str) -> str:
        return f"{self._source.path}: {name}"


def _stored_name(name: str) -> str:
    """Archive name of a matrix in CSR form; matrices of obsp are stored as graphs."""
    return name.replace("obsp", "graphs", 1) if name.startswith("obsp/") else name


def _shape(element: Any) -> tuple[int, ...] | None:
    """Shape of an element, or its length as a 1-tuple; None if it has neither."""
    if isinstance(element, SparseParts):
        return element.sparse.shape
    if isinstance(element, Reader):
        return (len(element), *element.item_shape)
    shape = getattr(element, "shape", None)
    if isinstance(shape, tuple):
        return shape or None
    has_rows = hasattr(element, "__len__") and not isinstance(element, Mapping | str)
    return (len(element),) if has_rows else None


def _dtypes(matrix: Any, element: Any) -> Mapping[str, np.dtype[Any]]:
    """Dtypes of the arrays of a matrix: its own if sparse, else those that AnnData uses."""
    if isinstance(element, SparseParts):
        return {part: reader.dtype for part, reader in element.parts.items()}
    return {DATA: matrix.dtype, INDICES: np.dtype(np.int32), INDPTR: np.dtype(np.int64)}
