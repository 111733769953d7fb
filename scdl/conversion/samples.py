"""Samples of rows of the matrices of a conversion, from which its size is estimated."""

from __future__ import annotations

import itertools
import math
from collections.abc import Collection, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from scdl.archive.csr import SparseRows
from scdl.archive.schema import DATA, INDICES, field_element, unique_names
from scdl.archive.tables import TableInMemory, row_names
from scdl.conversion.source_rows import SourceRows
from scdl.errors import ArchiveFormatError, SourceError
from scdl.sources.base import Source, SparseParts, genes_of, in_memory, is_matrix, matrix_of
from scdl.sources.matrices import Bounds, Matrix
from scdl.sources.wrapped import Wrapped

#: Ranges of rows of a file in a sample.
_RANGES = 8


class Followers(Wrapped):
    """A source whose other matrices by rows with the genes of its matrix are fields.

    Archives may store such matrices together, if there are no others beside the matrix.

    Parameters
    ----------
    source
        The source.
    without
        Names of elements that are fields already.

    Attributes
    ----------
    elements
        Names of these matrices in the source.
    """

    def __init__(self, source: Source, without: Collection[str]) -> None:
        super().__init__(source)
        found = _followers(source, without)
        names = [*source.fields, *(name.removeprefix(field_element("")) for name in found)]
        matrices = [*source.fields.values(), *found.values()]
        self.elements = [*found]
        self.fields = dict(zip(unique_names(names), matrices, strict=True))


def _followers(source: Source, without: Collection[str]) -> Mapping[str, Matrix]:
    found: dict[str, Matrix] = {}
    for name in source.names_of_rest():
        if not is_matrix(name) or name == "raw/X" or name in without:
            continue
        try:
            element: Any = in_memory(name, source.element_of_rest(name))
        except (SourceError, ArchiveFormatError):
            # Conversions leave it out.
            continue
        is_by_rows = isinstance(element, SparseParts) and element.sparse.format == "csr"
        if not is_by_rows or element.sparse.shape != source.matrix.shape:
            return {}
        found[name] = matrix_of(f"{source.path}: {name}", element)
    if found and source.genes != genes_of(next(iter(found))):
        frame = source.element_of_rest("var")
        if list(getattr(frame, "index", ())) != row_names(TableInMemory(source.var())):
            return {}
    return found


class Sample(NamedTuple):
    """A sample of rows.

    Attributes
    ----------
    rows
        The rows in their final form, by the prefix of the arrays of each matrix.
    nnz
        Estimated number of stored values of all rows, by prefix.
    """

    rows: Mapping[str, SparseRows]
    nnz: Mapping[str, int]


def sampled(matrices: Mapping[str, SourceRows], n_values: int, bounds: Bounds) -> Sample:
    """Read rows of all files, in proportion to their values, the same rows of all matrices.

    Parameters
    ----------
    matrices
        The matrix, whose prefix is empty, and others, by prefix.
    n_values
        Values of the matrix to read.
    bounds
        Sizes of the pieces that are read.
    """
    main = matrices[""]
    found = {prefix: [_no_rows(rows)] for prefix, rows in matrices.items()}
    nnz = dict.fromkeys(matrices, 0)
    for i, matrix in enumerate(main.matrices):
        share = math.ceil(n_values * matrix.size / max(main.n_values, 1))
        stored, before = 0, {prefix: len(parts) for prefix, parts in found.items()}
        few = bounds._replace(values=max(1, share // _RANGES))
        for first, blocks in _blocks(matrix, few):
            for n, rows in main.final(i, blocks):
                stored, stop = stored + n, first + len(rows.indptr) - 1
                found[""].append(_copied(rows))
                for prefix, beside in matrices.items():
                    part = beside.matrices[i].part(first, stop) if prefix else None
                    if part is not None and part.by_rows:
                        followers = beside.final(i, part.blocks(bounds))
                        found[prefix] += [_copied(rows) for _, rows in followers]
                first = stop
        for prefix, parts in found.items():
            new, own = parts[before[prefix] :], matrices[prefix].matrices[i]
            nnz[prefix] += _nnz(own, new, 0 if prefix else stored)
    return Sample({prefix: _joined(parts) for prefix, parts in found.items()}, nnz)


def _blocks(matrix: Matrix, bounds: Bounds) -> Iterator[tuple[int, Iterator[SparseRows]]]:
    """Rows from ranges that are spread over a matrix, with the number of the first of each.

    They come from its begin if it has to be read from there. A matrix that is stored by columns has
    no sample.
    """
    if not (matrix.by_rows and matrix.size):
        return
    n_obs = matrix.shape[0]
    length = -(-n_obs * bounds.values // matrix.size)
    for start in range(0, n_obs, max(length, -(-n_obs // _RANGES))):
        part = matrix.part(start, min(start + length, n_obs))
        if part is None:
            yield 0, itertools.islice(matrix.blocks(bounds), 1)
            return
        yield start, part.blocks(bounds)


def _no_rows(rows: SourceRows) -> SparseRows:
    data, indices = (np.empty(0, dtype) for dtype in rows.dtypes)
    return SparseRows(data, indices, np.zeros(1, np.int64))


def _copied(rows: SparseRows) -> SparseRows:
    # The memory of blocks is used again.
    return SparseRows(rows.data.copy(), rows.indices.copy(), rows.indptr.copy())


def _nnz(matrix: Matrix, parts: Sequence[SparseRows], stored: int) -> int:
    """Values of a matrix in the archive, from some of its rows; they have `stored`, if known."""
    n_cells = sum(len(rows.indptr) - 1 for rows in parts)
    kept = sum(len(rows.data) for rows in parts)
    if matrix.is_counted or not n_cells:
        return matrix.size * kept // stored if stored else matrix.size
    return matrix.shape[0] * kept // n_cells


def _joined(parts: Sequence[SparseRows]) -> SparseRows:
    """Rows of several blocks as one."""
    starts = np.cumsum([0, *(len(part.data) for part in parts)])
    indptr = [part.indptr[1:] + start for part, start in zip(parts, starts, strict=False)]
    data, indices = (np.concatenate([getattr(p, name) for p in parts]) for name in (DATA, INDICES))
    return SparseRows(data, indices, np.concatenate([[0], *indptr]))
