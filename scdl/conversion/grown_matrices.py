"""Adding rows to the matrices of an archive, in the form in which it stores each of them."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from scdl.archive.casting import Caster
from scdl.archive.csr import SparseRows, groups, spans
from scdl.archive.elements import Kind, elements_of
from scdl.archive.fields import fields_of
from scdl.archive.schema import DATA, INDICES, INDPTR, MATRIX, Info, field_element
from scdl.conversion.options import Meter
from scdl.conversion.source_rows import CleanRows, MatrixWriter
from scdl.errors import SourceError
from scdl.sources.base import Tally, genes_of, is_matrix
from scdl.sources.matrices import Bounds, Matrix
from scdl.sources.transposed import ByEntry, Entries
from storage_backends.base import ArrayStore, ArrayWriter
from storage_backends.compute.threads import prefetch


def growing_elements(store: ArrayStore, info: Info) -> tuple[list[str], list[str]]:
    """Elements besides the matrix, dense vectors and graphs to which rows can be added.

    Returns
    -------
    own
        Further matrices of the genes of the archive: fields, and those of an AnnData that are
        dense, stored by columns, or hold truth values.
    others
        Elements with other columns: matrices beside raw or raw beside another matrix, and what is
        in obsm besides dense vectors.
    """
    elements, genes = elements_of(store), genes_of(info.element)
    own, others = [field_element(name) for name in fields_of(store, info)], []
    for name, element in elements.items():
        if name in own:
            continue
        if not is_matrix(name):
            is_dense = element.kind is Kind.DENSE
            others += [name] if name.startswith("obsm/") and not is_dense else []
        elif genes_of(name) != genes:
            others += [name] if genes_of(name) in elements else []
        elif _n_columns(store, name, element.kind) in (None, info.max_n_vars):
            own.append(name)
    return own, others


def _n_columns(store: ArrayStore, name: str, kind: Kind) -> int | None:
    """Number of columns of a matrix; None if it is known once it is read."""
    if kind is Kind.OTHER:
        return None
    return (store.sparse[name].shape[1:] if kind is Kind.SPARSE else store.spec(name).item_shape)[0]


class GrownMatrices(NamedTuple):
    """Adds the rows of sources to matrices of an archive.

    Attributes
    ----------
    store, writer
        The archive, and the writer that adds cells to it.
    bounds, meter
        Sizes of the pieces that are read, and progress.
    tolerance
        Largest rounding of floats without a warning.
    """

    store: ArrayStore
    writer: ArrayWriter
    bounds: Bounds
    meter: Meter
    tolerance: float

    def add(self, name: str, matrices: Sequence[Matrix]) -> None:
        """Add the rows of some matrices to an element, and warn of rounded values."""
        if name in self.store.elements:
            self._add_truth(name, matrices)
            return
        sparse = self.store.sparse.get(name)
        dtype = self.store.spec(name if sparse is None else f"{name}/{DATA}").dtype
        caster = Caster.keeping(dtype, self.tolerance)
        if sparse is None:
            self._add_dense(name, matrices, caster)
        elif sparse.format == "csr":
            self.add_rows(f"{name}/", matrices, caster, Tally())
        else:
            self._add_columns(f"{name}/", matrices, caster)
        caster.warn(self.writer.path)

    def add_rows(
        self, prefix: str, matrices: Sequence[Matrix], caster: Caster, tally: Tally
    ) -> tuple[CleanRows, int]:
        """Add rows to a matrix that is stored by rows; returns what cleaned them, and their values.

        Parameters
        ----------
        prefix
            Prefix of the names of its arrays.
        """
        specs = [self.store.spec(prefix + part) for part in MATRIX]
        clean = CleanRows(specs[1].dtype, caster, tally)
        before = specs[0].length
        with MatrixWriter(self.writer, clean.dtypes, self.bounds, prefix, before) as out:
            for matrix in matrices:
                for rows in clean.of(matrix, None, self.bounds, self.meter):
                    out.write(rows)
            out.finish(specs[2].dtype)
        return clean, out.n_values - before

    def _add_dense(self, name: str, matrices: Sequence[Matrix], caster: Caster) -> None:
        (n_columns,) = self.store.spec(name).item_shape
        for rows in self._rows(matrices, caster):
            for dense in dense_pieces(rows, n_columns, self.bounds):
                self.writer.append(name, dense)

    def _add_truth(self, name: str, matrices: Sequence[Matrix]) -> None:
        """Write a matrix of truth values, which backends store as one object, anew."""
        old = self.store.read_element(name)
        check_truth(f"{self.store.path}: {name}", old)
        rows = self._rows(matrices, Caster.keeping(old.dtype))
        self.writer.write_element(name, with_rows(old, rows, old.shape[1]))

    def _rows(self, matrices: Sequence[Matrix], caster: Caster) -> Iterator[SparseRows]:
        clean = CleanRows(np.dtype(np.int64), caster, Tally())
        for matrix in matrices:
            yield from clean.of(matrix, None, self.bounds, self.meter)

    def _add_columns(self, prefix: str, matrices: Sequence[Matrix], caster: Caster) -> None:
        """Write a matrix that is stored by columns anew: each gets its new values at the end."""
        specs = {part: self.store.spec(prefix + part) for part in MATRIX}
        before = self.store.read(prefix + INDPTR).astype(np.int64)
        n_obs = self.store.spec(INDPTR).length - 1
        new = _Columns(matrices, caster, n_obs, self.meter)
        ids = _index_type(specs[INDICES].dtype, new.shape[1])
        self.writer.restart(prefix + DATA, caster.dtype)
        self.writer.restart(prefix + INDICES, ids)
        n_new, first = np.zeros(len(before), np.int64), 0
        for block in new.blocks(self.bounds):
            n = len(block.indptr) - 1
            n_new[first + 1 : first + n + 1] = np.diff(block.indptr)
            stops = before[first : first + n + 1]
            # One column has at most as many values as there are cells.
            for start, stop in groups(stops + block.indptr, self.bounds.values):
                part = slice(block.indptr[start], block.indptr[stop])
                lengths = np.diff(block.indptr[start : stop + 1])
                places = np.repeat(stops[start + 1 : stop + 1] - stops[start], lengths)
                for name, added in ((DATA, block.data[part]), (INDICES, block.indices[part])):
                    old = self.store.read(prefix + name, int(stops[start]), int(stops[stop]))
                    old = old.astype(ids if name == INDICES else caster.dtype, copy=False)
                    self.writer.append(prefix + name, np.insert(old, places, added))
            first += n
        offsets = before + np.cumsum(n_new)
        dtype = _index_type(specs[INDPTR].dtype, int(offsets[-1]) + 1)
        self.writer.restart(prefix + INDPTR, dtype)
        self.writer.append(prefix + INDPTR, offsets.astype(dtype))


class _Columns(ByEntry):
    """The columns of matrices as rows, whose ids are those of cells that follow others."""

    def __init__(
        self, matrices: Sequence[Matrix], caster: Caster, n_before: int, meter: Meter
    ) -> None:
        self.where, self.dtype = matrices[0].where, caster.dtype
        self.shape = matrices[0].shape[1], n_before + sum(matrix.shape[0] for matrix in matrices)
        self.size = sum(matrix.size for matrix in matrices)
        self._matrices, self._n_before, self._meter = matrices, n_before, meter
        self._clean = CleanRows(np.dtype(np.int64), caster, Tally())

    def _entries(self, bounds: Bounds, *, with_values: bool) -> Iterator[Entries]:
        first = self._n_before
        for matrix in self._matrices:
            for n_values, rows in self._clean.blocks(matrix, None, prefetch(matrix.blocks(bounds))):
                n = len(rows.indptr) - 1
                cells = np.repeat(np.arange(first, first + n), np.diff(rows.indptr))
                yield Entries(rows.indices, cells, rows.data)
                first += n
                # Matrices are read twice.
                self._meter.update(n_values * with_values)


def dense_pieces(rows: SparseRows, n_columns: int, bounds: Bounds) -> Iterator[NDArray[Any]]:
    """Rows without repeated entries as dense ones, of which few are in memory."""
    for start, stop in spans(len(rows.indptr) - 1, max(1, bounds.values // max(n_columns, 1))):
        part = slice(rows.indptr[start], rows.indptr[stop])
        at = np.repeat(np.arange(stop - start), np.diff(rows.indptr[start : stop + 1]))
        dense = np.zeros((stop - start, n_columns), rows.data.dtype)
        dense[at, rows.indices[part]] = rows.data[part]
        yield dense


def check_truth(where: str, found: Any) -> None:
    """Raise SourceError for an object that cannot get rows, as it has no truth values."""
    dtype = getattr(found, "dtype", type(found).__name__)
    if str(dtype) != "bool" or found.ndim != 2:
        raise SourceError(
            f"{where}: cells cannot be added to it: expected numbers, truth values or a table, "
            f"found {dtype}; convert the archive and the new cells to another archive without it: "
            "scdl.convert([archive, source], path)"
        )


def with_rows(old: Any, blocks: Iterable[SparseRows], n_columns: int) -> Any:
    """A matrix in memory with further rows, in its own form; new columns are empty."""
    import scipy.sparse as sp

    before: Any = sp.csr_matrix(old)
    before.resize(before.shape[0], n_columns)
    # The memory of blocks is used again.
    parts = [before]
    for block in blocks:
        shape = len(block.indptr) - 1, n_columns
        parts.append(sp.csr_matrix((block.data, block.indices, block.indptr), shape, copy=True))
    whole = sp.vstack(parts, "csr")
    return whole.toarray() if isinstance(old, np.ndarray) else type(old)(whole)


def _index_type(stored: np.dtype[Any], n: int) -> np.dtype[Any]:
    """The stored dtype of ids or offsets if it can hold those below `n`, else int64."""
    return stored if n - 1 <= np.iinfo(stored).max else np.dtype(np.int64)
