"""Concatenation of archives: copying and casting their cells into one archive."""

from __future__ import annotations

import logging
from collections.abc import Iterator, Sequence
from contextlib import suppress
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa
from numpy.typing import DTypeLike

from scdl.archive import csr
from scdl.archive.casting import Caster, common_dtype
from scdl.archive.elements import dense_vectors, graph_keys
from scdl.archive.fields import fields_of, joint_field, shared_names
from scdl.archive.schema import (
    DATA,
    INDEX,
    OBS,
    Info,
    field_element,
    field_prefix,
    graph_array,
    obsm_array,
    var_table,
)
from scdl.archive.tables import NoTable, StoredTable, TableSource
from scdl.conversion.elements import write_rest
from scdl.conversion.joined_rows import JoinedRows
from scdl.conversion.losses import (
    CHUNK_BYTES,
    begin_elements,
    begin_fields,
    graph_dtypes,
    report_left_out,
    report_losses,
)
from scdl.conversion.row_order import Shuffle
from scdl.conversion.tables import United
from scdl.conversion.var_tables import VarPart, write_var
from scdl.errors import CastError, NeighborError, SourceError
from scdl.sources.archive import ArchiveSource
from scdl.sources.matrices import Bounds
from storage_backends.base import ArrayStore, ArrayWriter

if TYPE_CHECKING:
    from scdl.dataset.reader import CellReader

_log = logging.getLogger(__name__)


def concatenate(
    stores: Sequence[ArrayStore],
    writer: ArrayWriter,
    dtype: DTypeLike | None = None,
    chunk_bytes: int = CHUNK_BYTES,
    obs: Sequence[TableSource] | None = None,
    *,
    lossless: bool = False,
    view: CellReader | None = None,
    shuffle: Shuffle | None = None,
) -> None:
    """Write the cells of archives of any backends to one archive, and commit.

    Adjacent feature blocks with the same genes are merged. obs gets the columns of all archives,
    with nulls where an archive lacks one; the neighbours in graphs are renumbered; obsm and fields
    are kept if all archives with cells have them. Genes that are stored out of order are sorted.
    All other elements are kept for a single archive if the writer supports them, and left out with
    a warning for several.

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
    shuffle
        How to shuffle the cells, which need one gene space; None: those of each archive follow
        those of the archive before.

    Raises
    ------
    CollectionError
        Something would be left out, and `lossless` is True.
    GeneError
        The archives are shuffled and have different genes.
    OptionError
        The archives are shuffled, and obs has the column of original rows already.
    CastError
        No dtype represents the values of all archives and `dtype` is None, or `dtype` cannot
        represent a value.
    NeighborError
        A graph is not cells x cells, or has a neighbour that is out of range.
    """
    infos = [Info.from_attrs(store.attrs, store.path) for store in stores]
    for store, info in zip(stores, infos, strict=True):
        _log.info("%s: %d cells, copied to %s", store.path, info.n_obs, writer.path)
    whole = len(stores) == 1 and writer.keeps_elements and view is None
    vectors = [] if whole else shared_vectors(stores, infos)
    fields = {} if whole else shared_fields(stores, infos)
    graphs = [] if whole else list(dict.fromkeys(key for s in stores for key in graph_keys(s)))
    n_obs, n_vars = sum(info.n_obs for info in infos), max(info.max_n_vars for info in infos)
    shape = n_obs, n_vars if view is None else view.max_n_vars
    refused = begin_elements(stores, writer, vectors, graphs)
    refused |= begin_fields(writer, fields, shape)
    kept = None if whole else [*vectors, *map(field_element, fields)]
    report_losses(stores, writer, kept, refused, lossless=lossless)
    caster = keeping(stores, writer) if dtype is None else Caster(dtype)
    values_at_once = max(1, chunk_bytes // caster.dtype.itemsize)
    order = Shuffle.order(shuffle, n_obs, writer.path)
    joined = JoinedRows(stores, infos, order, caster, values_at_once, view)
    var, left_out = order.var(var_parts(stores, infos, view), writer.path)
    report_left_out(writer, left_out, lossless=lossless)
    blocks, _ = write_var(writer, var)
    cells = order.obs(obs or obs_tables(stores))
    # A table without columns cannot have rows.
    if any(table.schema.names for table in cells):
        united = United(cells)
        united.warn(writer.path)
        writer.write_table(OBS, order.table(united))
    if whole:
        source = ArchiveSource(stores[0], infos[0], 0, None)
        bounds = Bounds(values=values_at_once, target=writer.path)
        if lost := write_rest(source, writer, bounds, order=order):
            raise SourceError(
                f"{source.path}: {', '.join(lost)} cannot be read or stored; convert the archive "
                "with scdl.convert, which leaves out such elements"
            )
    else:
        for name in (name for name in vectors if name not in refused):
            for values in joined.vectors(name):
                writer.append(name, values)
        if graphs and n_obs > 1 << 32:
            raise NeighborError(f"{writer.path}: a graph may have at most 2^32 cells")
        for key in (key for key in graphs if f"obsp/{key}" not in refused):
            types = [*graph_dtypes(key, stores, writer).values()]
            rows = joined.graph(key, types[0])
            csr.write_rows(writer, graph_array(key, ""), rows, types)
    written = [name for name in fields if field_element(name) not in refused]
    for name in written:
        of_field = joined.of_field(name, fields[name])
        dtypes = of_field.dtypes(shape[1])
        csr.write_rows(writer, field_prefix(name), of_field.matrix(dtypes[1]), dtypes)
    dtypes = joined.dtypes(shape[1])
    csr.write_rows(writer, "", joined.matrix(dtypes[1]), dtypes)
    matrices = tuple(name for info in infos for name in info.matrices)
    # Warn before the commit, since warning filters may turn the warning into an error.
    caster.warn(writer.path)
    element, names = (infos[0].element, infos[0].fields) if whole else ("X", tuple(written))
    writer.commit(Info(blocks, True, matrices, element, names).to_attrs())


def keeping(stores: Sequence[ArrayStore], writer: ArrayWriter) -> Caster:
    """A caster that keeps the values of all archives exactly, if the writer supports the dtype."""
    common = common_dtype((store.path, store.spec(DATA).dtype) for store in stores)
    if common.kind == "i" and not writer.keeps_elements:
        # These archives do not store signed integers; the caster raises for negative values.
        return Caster(f"u{common}")
    return Caster.keeping(common)


def shared_vectors(stores: Sequence[ArrayStore], infos: Sequence[Info]) -> list[str]:
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


def shared_fields(stores: Sequence[ArrayStore], infos: Sequence[Info]) -> dict[str, np.dtype[Any]]:
    """The dtype of each field that all archives with cells have, if one holds the values of all."""
    pairs = list(zip(stores, infos, strict=True))
    # Archives without cells may lack the fields.
    pairs = [pair for pair in pairs if pair[1].n_obs] or pairs
    parts = {store.path: fields_of(store, info) for store, info in pairs}
    found = {}
    for name in shared_names([*parts.values()]):
        with suppress(CastError):
            joint = joint_field({path: fields[name] for path, fields in parts.items()})
            found[name] = np.dtype(joint.dtype)
    return found


def var_parts(
    stores: Sequence[ArrayStore], infos: Sequence[Info], view: CellReader | None
) -> Iterator[VarPart]:
    """The var table, number of cells and label of every feature block, or of the view."""
    if view is not None:
        (columns,) = view.var_features().blocks
        yield pa.table({INDEX: columns.array(INDEX)}), view.n_obs, None
        return
    for store, info in zip(stores, infos, strict=True):
        for i, (block, n) in enumerate(zip(info.blocks, info.block_lengths, strict=True)):
            yield store.read_table(var_table(i)), n, block.label


def obs_tables(
    stores: Sequence[ArrayStore], columns: Sequence[str] | None = None
) -> list[TableSource]:
    """The obs table of each archive, or some of its columns; empty if an archive has no obs."""
    lengths = [Info.from_attrs(store.attrs, store.path).n_obs for store in stores]
    return [
        StoredTable(store, OBS, n, columns=columns) if OBS in store.tables else NoTable(n)
        for store, n in zip(stores, lengths, strict=True)
    ]
