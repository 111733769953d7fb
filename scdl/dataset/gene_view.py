"""Views of cells in one gene space."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any, TypedDict, Unpack

import numpy as np
from numpy.typing import NDArray

from scdl.archive import csr
from scdl.archive.features import ObsFeatures, VarFeatures
from scdl.archive.fields import Field
from scdl.archive.gene_names import names_hash, number_keys, strings
from scdl.archive.gene_space import (
    BlockGenes,
    Duplicates,
    GeneSpace,
    Missing,
    Vocabulary,
    gene_space,
)
from scdl.archive.gene_space import Genes as Genes
from scdl.archive.graph import NeighborGraph
from scdl.archive.joining import Lookup, read_mapped_rows
from scdl.archive.requests import RowForm
from scdl.archive.schema import INDEX, Block, Info, smallest_unsigned
from scdl.dataset import summary
from scdl.dataset.batch import CellBatch
from scdl.dataset.cells import Origin, Storage
from scdl.dataset.reader import CellReader
from scdl.dataset.rows import RowReader
from scdl.errors import OutputError
from storage_backends.compute.caching import cached_property
from storage_backends.compute.delegation import delegated
from storage_backends.compute.traffic import TRAFFIC

if TYPE_CHECKING:
    import pandas as pd


class GeneOptions(TypedDict, total=False):
    """Options of :class:`GeneView`; every key may be left out."""

    gene_column: str | None
    missing: Missing
    duplicates: Duplicates


class GeneView(CellReader):
    """The cells of a dataset or a collection in one gene space, without a copy.

    It supports the methods of a dataset, with a single feature block, whose genes are the
    vocabulary. It is created by :meth:`~scdl.SingleCellDataset.select_genes`.

    Parameters
    ----------
    cells
        The dataset or collection.
    genes
        The vocabulary.
    **options
        ``gene_column``, ``missing`` and ``duplicates``.

    Examples
    --------
    >>> genes = atlas.select_genes(["LYZ", "CD3E", "FOXP3"], missing="zero")
    >>> genes
    GeneView(SingleCellCollection('.../atlas'): 2 archives, 12 cells): 3 genes
    >>> genes.read_rows([0]).to_dense()
    array([[1., 2., 0.]], dtype=float32)
    >>> genes.coverage()["present"].to_list()
    [2, 2]
    """

    def __init__(self, cells: RowReader, genes: Genes, **options: Unpack[GeneOptions]) -> None:
        missing: Missing = options.get("missing", "error")
        names, table_of = _genes_of(cells, options.get("gene_column"))
        duplicates: Duplicates = options.get("duplicates", "error")
        space = gene_space(genes, names, table_of, missing, duplicates)
        self._cells, self._missing = cells, missing
        if isinstance(cells, GeneView):
            # For a selection of a selection, combine the genes and read the original cells.
            self._cells, space = cells._cells, cells._space.then(space)
            self._missing = "mask" if cells._missing == "mask" else missing
        self._space: GeneSpace = space
        self._blocks = self._cells.info

    def __repr__(self) -> str:
        return f"GeneView({self._cells!r}): {len(self._space.names)} genes"

    def _facts(self) -> summary.Facts:
        return {"genes": summary.names(self.gene_names), "cells of": repr(self._cells)}

    # -- contents --------------------------------------------------------------------------

    @cached_property
    def info(self) -> Info:
        """A single feature block with the genes of the vocabulary."""
        source = self._cells.info
        return replace(source, blocks=(Block(source.n_obs, len(self._space.names)),))

    @cached_property
    def gene_spaces(self) -> NDArray[np.int64]:
        """One gene space, the vocabulary."""
        return np.zeros(1, np.int64)

    @property
    def gene_names(self) -> NDArray[Any]:
        """Ids of the genes, as objects."""
        return self._var.blocks[0].column(INDEX)

    @property
    def present(self) -> NDArray[np.bool_]:
        """Whether a gene space of the archives has a gene; spaces x n_vars."""
        return self._space.present

    def spaces(self, rows: csr.Rows) -> NDArray[np.int64]:
        """The gene space of each cell, as a row of :attr:`present`."""
        return self._tables(csr.positions(rows, self.n_obs))

    def coverage(self) -> pd.DataFrame:
        """Number of genes of the vocabulary that the cells of each origin have.

        Returns
        -------
        pandas.DataFrame
            Indexed by origin (a member of a collection, or the file that a feature block came
            from): ``n_obs``; ``n_vars``, its genes; ``present`` and ``missing``, genes of the
            vocabulary; ``share``, that are present.
        """
        import pandas as pd

        origins = self._cells.origins()
        widths = np.array(self._cells.n_vars)
        blocks = np.array([origin.block for origin in origins], np.int64)
        present = self._space.present.sum(axis=1)[self._space.table_of[blocks]]
        n_vars = len(self._space.names)
        return pd.DataFrame(
            {
                "n_obs": [origin.n_obs for origin in origins],
                "n_vars": widths[blocks],
                "present": present,
                "missing": n_vars - present,
                "share": present / n_vars,
            },
            index=pd.Index([origin.name for origin in origins], name="origin"),
        )

    @property
    def identity(self) -> tuple[Any, ...]:
        """Identifies these cells and genes among archives at the same path."""
        return *self._cells.identity, self._space_hash, self._missing

    @cached_property
    def _space_hash(self) -> str:
        import pyarrow as pa

        space = self._space
        found = hashlib.sha256(names_hash(pa.chunked_array([space.names])).encode())
        for part in (space.genes, space.bounds, space.table_of):
            found.update(part.tobytes())
        return found.hexdigest()

    @cached_property
    def _var(self) -> VarFeatures:
        """The vocabulary, as the only column of var."""
        names = Vocabulary(self._space.names)
        return VarFeatures(names, self.info, ("feature_id", "var_feature_id"))

    def origins(self) -> list[Origin]:
        """Origins of the cells, in order."""
        return [origin._replace(block=0) for origin in self._cells.origins()]

    # -- reading ---------------------------------------------------------------------------

    def _tables(self, at: NDArray[np.int64]) -> NDArray[np.int64]:
        if len(self._space.present) == 1:
            return np.zeros(len(at), np.int64)
        return self._space.table_of[self._blocks.blocks_of(at)]

    _request = delegated("_cells._request")
    _vectors = delegated("_cells._vectors")
    _vector_keys = delegated("_cells._vector_keys")
    _obs_batches = delegated("_cells._obs_batches")
    _graph_of = delegated("_cells._graph_of")

    @property
    def fields(self) -> list[str]:
        """Names of the fields of the cells."""
        return self._cells.fields

    def _field(self, name: str) -> Field:
        return self._cells._field(name)._replace(index_dtype=self.index_dtype.name)

    def _read(self, at: NDArray[np.int64], form: RowForm, field: str = "") -> CellBatch:
        space, n_vars = self._space, self.info.max_n_vars
        given = self.index_dtype if form.index_dtype is None else np.dtype(form.index_dtype)
        if not np.can_cast(self.index_dtype, given, "safe"):
            raise OutputError(f"index_dtype {given} cannot represent the ids of {n_vars} genes")
        if not field:
            TRAFFIC.read(len(at))
        request, tables = self._cells._request(at, field), self._tables(at)
        # Dtype in which the values of genes that map to one can be added.
        wide = self._sum_dtype(request.matrices.data_dtype) if field else self.data_dtype
        lookup = Lookup(space.genes, space.bounds, space.in_order, tables)
        sums = np.empty(len(at), np.float64) if form.totals else None
        how: dict[str, Any] = {"ordered": form.ordered, "sum_dtype": form.sum_dtype or wide}
        rows = read_mapped_rows(request, lookup, n_vars, given, totals=sums, **how)
        data = rows.data
        if form.sum_dtype is None and data.dtype != wide and not form.totals:
            data = data.astype(wide)
        # The kernel returns only ids of the vocabulary.
        batch = CellBatch(data, *rows[1:3], n_vars=n_vars, rows=at, largest=n_vars - 1, totals=sums)
        if self._missing != "mask":
            return batch
        return replace(batch, present=space.present, spaces=tables)

    def _encoded(self, *_: Any) -> None:
        """Only stored genes are encoded."""

    def obs_features(self) -> ObsFeatures | None:
        """Columns of obs by cell; None if there is no obs."""
        return self._cells.obs_features()

    @property
    def graph(self) -> NeighborGraph | None:
        """The neighbour graph of the cells."""
        return self._cells.graph

    @property
    def neighbor_keys(self) -> list[str]:
        """Keys of the neighbour graphs of the cells."""
        return self._cells.neighbor_keys

    def number_nonzero_values(self) -> int:
        """Number of stored values in this gene space; counting them reads all cells."""
        counted = 0
        for start, stop in csr.spans(self.n_obs, _COUNTED_CELLS):
            # Ordered rows have the sums of duplicate genes.
            counted += len(self._read(np.arange(start, stop), RowForm(ordered=True)).data)
        return counted

    @cached_property
    def data_dtype(self) -> np.dtype[Any]:
        """Dtype of the values; wider than the stored one if sums of genes could overflow."""
        return self._sum_dtype(self._cells.data_dtype)

    def _sum_dtype(self, stored: np.dtype[Any]) -> np.dtype[Any]:
        """The stored dtype, or a wider one if sums of genes could overflow."""
        repeats = self._space.most_repeats
        if repeats < 2:
            return stored
        if stored.kind == "f":
            return np.result_type(stored, np.float32)
        most = min(int(np.iinfo(stored).max) * repeats, np.iinfo(np.uint64).max)
        return smallest_unsigned(most) if stored.kind == "u" else np.dtype(np.int64)

    @property
    def index_dtype(self) -> np.dtype[Any]:
        """Dtype of the column ids, unsigned."""
        return smallest_unsigned(self.info.max_n_vars - 1)

    @property
    def bytes_per_cell(self) -> float:
        """Average bytes of a cell in memory before genes are selected."""
        return self._cells.bytes_per_cell

    @property
    def storage(self) -> Storage:
        """How the cells are stored."""
        return self._cells.storage

    def will_need(self, rows: NDArray[np.int64], fields: Sequence[str] = ()) -> Any:
        """Announce cells that will be read soon, so that the storage can prefetch them."""
        return self._cells.will_need(rows, fields)


#: Number of cells to read at once when counting values.
_COUNTED_CELLS = 4_096


def _genes_of(cells: RowReader, column: str | None) -> tuple[list[BlockGenes], list[int]]:
    """The distinct lists of genes, and the index of the list of each feature block."""
    # Blocks with the same names may have different columns.
    keys = cells.gene_spaces.tolist() if column is None else cells._block_keys()
    table_of = number_keys(keys).tolist()
    features = cells.var_features()
    names: dict[int, str] = {}
    for origin in cells.origins():
        names.setdefault(table_of[origin.block], origin.name)
    if isinstance(cells, GeneView):
        names = {0: "the selection of genes"}
    blocks = []
    for table in range(max(table_of, default=-1) + 1):
        ids = features.blocks[table_of.index(table)].array(column or INDEX)
        blocks.append(BlockGenes(names.get(table, f"block {table}"), strings(ids)))
    return blocks, table_of
