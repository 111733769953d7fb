"""Concatenation of archives: copying and casting their cells into one archive."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING

import numpy as np
import pyarrow as pa
from numpy.typing import DTypeLike

from scdl.archive import csr
from scdl.archive.casting import Caster, common_dtype
from scdl.archive.elements import dense_vectors, graph_keys
from scdl.archive.graph import NeighborGraph
from scdl.archive.schema import (
    DATA,
    GRAPH_DTYPES,
    INDEX,
    INDICES,
    INDPTR,
    OBS,
    Info,
    graph_array,
    obsm_array,
    smallest_unsigned,
    var_table,
)
from scdl.archive.stored_rows import StoredRows
from scdl.archive.tables import NoTable, StoredTable, TableSource
from scdl.conversion.elements import write_rest
from scdl.conversion.losses import CHUNK_BYTES, begin_elements, graph_dtypes, report_losses
from scdl.conversion.tables import United, write_var
from scdl.errors import NeighborError, SourceError
from scdl.sources.archive import ArchiveSource, StoredArray
from scdl.sources.matrices import Bounds, pieces
from storage_backends.base import ArrayStore, ArrayWriter

if TYPE_CHECKING:
    from scdl.dataset.reader import CellReader


def concatenate(
    stores: Sequence[ArrayStore],
    writer: ArrayWriter,
    dtype: DTypeLike | None = None,
    chunk_bytes: int = CHUNK_BYTES,
    obs: Sequence[TableSource] | None = None,
    *,
    lossless: bool = False,
    view: CellReader | None = None,
) -> None:
    """Write the cells of archives of any backends one after the other, and commit.

    Adjacent feature blocks with the same genes are merged. obs gets the columns of all archives,
    with nulls where an archive lacks one; the neighbours in graphs are renumbered; obsm is kept if
    all archives with cells have it. Genes that are stored out of order are sorted. All other
    elements are kept for a single archive if the writer supports them, and left out with a warning
    for several.

    Parameters
    ----------
    stores
        The archives, at least one.
    writer
        Writer of the result.
    dtype
        Dtype of the values; default: :func:`scdl.archive.casting.common_dtype`.
    chunk_bytes
        Bytes of stored values processed at a time.
    obs
        Tables of the cells, one per archive; default: those of the archives.
    lossless
        Whether to raise an error, before anything is written, if something would be left out or
        rounded.
    view
        The same cells in one gene space, in which they are written; None: each archive keeps its
        own genes.

    Raises
    ------
    CollectionError
        Something would be left out, and `lossless` is True.
    CastError
        No dtype represents the values of all archives and `dtype` is None, or `dtype` cannot
        represent a value.
    NeighborError
        A graph is not cells x cells, or has a neighbour that is out of range.
    """
    infos = [Info.from_attrs(store.attrs, store.path) for store in stores]
    whole = len(stores) == 1 and writer.keeps_elements and view is None
    vectors = [] if whole else _vectors(stores, infos)
    graphs = [] if whole else list(dict.fromkeys(key for s in stores for key in graph_keys(s)))
    refused = begin_elements(stores, writer, vectors, graphs)
    report_losses(stores, writer, None if whole else vectors, refused, lossless=lossless)
    caster = _keeping(stores, writer) if dtype is None else Caster(dtype)
    values_at_once = max(1, chunk_bytes // caster.dtype.itemsize)
    tables = _var_blocks(stores, infos) if view is None else _var_of(view)
    blocks = write_var(writer, tables).blocks
    cells = obs or obs_tables(stores)
    # A table without columns cannot have rows.
    if any(table.schema.names for table in cells):
        united = United(cells)
        united.warn(writer.path)
        writer.write_table(OBS, united.reader())
    if whole:
        source = ArchiveSource(stores[0], infos[0], 0, None)
        if lost := write_rest(source, writer, Bounds(values=values_at_once)):
            raise SourceError(
                f"{source.path}: {', '.join(lost)} cannot be read or stored; convert the archive "
                "with scdl.convert, which leaves out such elements"
            )
    else:
        kept = [name for name in vectors if name not in refused]
        _write_vectors(kept, stores, writer, values_at_once)
        for key in graphs:
            if f"obsp/{key}" not in refused:
                _write_graph(key, stores, infos, writer, values_at_once)
    n_values = sum(store.spec(DATA).length for store in stores)
    n_vars = max(block.n_vars for block in blocks)
    rows = _rows(stores, infos, values_at_once, view)
    _write_matrix(rows, n_vars, n_values, writer, caster)
    matrices = tuple(name for info in infos for name in info.matrices)
    # Warn before the commit, since warning filters may turn the warning into an error.
    caster.warn(writer.path)
    element = infos[0].element if whole else "X"
    writer.commit(Info(blocks, is_sorted=True, matrices=matrices, element=element).to_attrs())


def _keeping(stores: Sequence[ArrayStore], writer: ArrayWriter) -> Caster:
    """A caster that keeps the values of all archives exactly, if the writer supports the dtype."""
    common = common_dtype((store.path, store.spec(DATA).dtype) for store in stores)
    if common.kind == "i" and not writer.keeps_elements:
        # These archives do not store signed integers; the caster raises for negative values.
        return Caster(f"u{common}")
    return Caster.keeping(common)


def _vectors(stores: Sequence[ArrayStore], infos: Sequence[Info]) -> list[str]:
    """Names of dense vectors that all archives with cells have with the same dtype and width."""
    found = {key: None for store in stores for key in dense_vectors(store)}
    shapes = {
        name: {
            (spec.dtype, spec.item_shape) if spec is not None else None
            for store, info in zip(stores, infos, strict=True)
            # Archives without cells may lack the vectors.
            if (spec := store.arrays.get(name)) is not None or info.n_obs
        }
        for name in map(obsm_array, found)
    }
    return [name for name, kinds in shapes.items() if len(kinds) == 1]


def _var_blocks(
    stores: Sequence[ArrayStore], infos: Sequence[Info]
) -> Iterator[tuple[pa.Table, int, str | None]]:
    """The var table, number of cells and label of every feature block."""
    for store, info in zip(stores, infos, strict=True):
        start = 0
        for i, block in enumerate(info.blocks):
            yield store.read_table(var_table(i)), block.stop - start, block.label
            start = block.stop


def _var_of(view: CellReader) -> Iterator[tuple[pa.Table, int, str | None]]:
    """The var table of a view in one gene space, with its number of cells."""
    (columns,) = view.var_features().blocks
    yield pa.table({INDEX: columns.array(INDEX)}), view.n_obs, None


def obs_tables(
    stores: Sequence[ArrayStore], columns: Sequence[str] | None = None
) -> list[TableSource]:
    """The obs table of each archive, or some of its columns; empty if an archive has no obs."""
    lengths = [Info.from_attrs(store.attrs, store.path).n_obs for store in stores]
    return [
        StoredTable(store, OBS, n, columns=columns) if OBS in store.tables else NoTable(n)
        for store, n in zip(stores, lengths, strict=True)
    ]


def _write_vectors(
    names: Sequence[str], stores: Sequence[ArrayStore], writer: ArrayWriter, at_once: int
) -> None:
    for name in names:
        for store in (store for store in stores if name in store.arrays):
            for values in pieces(StoredArray(store, name), at_once):
                writer.append(name, values)


def _write_graph(
    key: str,
    stores: Sequence[ArrayStore],
    infos: Sequence[Info],
    writer: ArrayWriter,
    at_once: int,
) -> None:
    if sum(info.n_obs for info in infos) > 1 << 32:
        raise NeighborError(f"{writer.path}: the graph {key!r} would have more than 2^32 cells")
    names = {part: graph_array(key, part) for part in GRAPH_DTYPES}
    weights = graph_dtypes(key, stores, writer)[DATA]
    first_row, first_value = 0, 0
    for store, info in zip(stores, infos, strict=True):
        n_values = 0
        if names[DATA] in store.arrays:
            # A graph that is not square, or has ids out of range, would refer to cells of other
            # archives. NeighborGraph checks the shape, check_inside the ids.
            graph = NeighborGraph(store, key)
            n_values = store.spec(names[DATA]).length
            for start, stop in csr.spans(n_values, at_once):
                values = store.read(names[DATA], start, stop)
                writer.append(names[DATA], values.astype(weights, copy=False))
                neighbors = store.read(names[INDICES], start, stop).astype(np.int64)
                graph.check_inside(neighbors)
                shifted = (neighbors + first_row).astype(GRAPH_DTYPES[INDICES])
                writer.append(names[INDICES], shifted)
        for start, stop in csr.spans(info.n_obs, at_once):
            if names[INDPTR] in store.arrays:
                ends = store.read(names[INDPTR], start + 1, stop + 1).astype(np.int64)
            else:
                ends = np.zeros(stop - start, np.int64)
            writer.append(names[INDPTR], (ends + first_value).astype(GRAPH_DTYPES[INDPTR]))
        first_row += info.n_obs
        first_value += n_values


def clean_rows(
    store: ArrayStore, info: Info, at_once: int, start: int = 0, stop: int | None = None
) -> Iterator[csr.SparseRows]:
    """Read rows ``[start, stop)``, at most `at_once` values at a time, sorted by gene."""
    stop = info.n_obs if stop is None else stop
    for first, last in csr.row_spans(store, "", stop, at_once, start):
        rows = StoredRows.of(store, "", np.arange(first, last)).read()
        yield rows if info.is_sorted else csr.clean(rows, info.max_n_vars, store.path)


def _rows(
    stores: Sequence[ArrayStore], infos: Sequence[Info], at_once: int, view: CellReader | None
) -> Iterator[tuple[str, csr.SparseRows]]:
    """Read the rows of all archives, sorted by gene, with the path of each archive."""
    first = 0
    for store, info in zip(stores, infos, strict=True):
        if view is None:
            for rows in clean_rows(store, info, at_once):
                yield store.path, rows
        else:
            for start, stop in csr.row_spans(store, "", info.n_obs, at_once):
                batch = view._read(np.arange(first + start, first + stop), True, None)
                yield store.path, csr.SparseRows(batch.data, batch.indices, batch.indptr)
        first += info.n_obs


def _write_matrix(
    parts: Iterator[tuple[str, csr.SparseRows]],
    n_vars: int,
    most_values: int,
    writer: ArrayWriter,
    caster: Caster,
) -> None:
    index_dtype = smallest_unsigned(n_vars - 1)
    indptr_dtype = smallest_unsigned(most_values)
    writer.append(INDPTR, np.zeros(1, indptr_dtype))
    first_value = 0
    for path, rows in parts:
        writer.append(DATA, caster(rows.data, path))
        writer.append(INDICES, rows.indices.astype(index_dtype, copy=False))
        writer.append(INDPTR, (rows.indptr[1:] + first_value).astype(indptr_dtype))
        first_value += int(rows.indptr[-1])
    writer.append(DATA, np.empty(0, caster.dtype))
    writer.append(INDICES, np.empty(0, index_dtype))
