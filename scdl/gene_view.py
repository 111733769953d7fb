"""Cells as they look in one gene space."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any, TypedDict, Unpack

import numpy as np
from numpy.typing import DTypeLike, NDArray

from scdl import csr
from scdl.batch import CellBatch
from scdl.errors import OutputError
from scdl.features import ObsFeatures, VarFeatures
from scdl.genes import BlockGenes, Duplicates, GeneSpace, Missing, gene_space
from scdl.genes import Genes as Genes
from scdl.joining import Dtypes, Lookup, Request, join_mapped
from scdl.neighbors import NeighborGraph
from scdl.rows import CellReader, Origin
from scdl.schema import INDEX, Block, Info, smallest_unsigned
from storage_backends.caching import cached_property

if TYPE_CHECKING:
    import pandas as pd
    import pyarrow as pa


class GeneOptions(TypedDict, total=False):
    """How cells are brought into one gene space; every key may be left out."""

    gene_column: str | None
    missing: Missing
    duplicates: Duplicates


class GeneView(CellReader):
    """The cells of a dataset or a collection in one gene space; nothing is copied.

    It reads and trains as what it is made of does, with one feature block, whose genes are the
    vocabulary. :meth:`CellReader.select_genes` makes it.

    Parameters
    ----------
    cells
        What to read.
    genes
        The vocabulary.
    **options
        ``gene_column``, ``missing`` and ``duplicates``.
    """

    def __init__(self, cells: CellReader, genes: Genes, **options: Unpack[GeneOptions]) -> None:
        self._cells = cells
        column = options.get("gene_column")
        tables: dict[str, int] = {}
        table_of = [tables.setdefault(key, len(tables)) for key in cells._block_keys()]
        names: dict[int, str] = {}
        for origin in cells.origins():
            names.setdefault(table_of[origin.block], origin.name)
        features = cells.var_features()
        blocks = []
        for table in range(len(tables)):
            ids = features.blocks[table_of.index(table)].array(column or INDEX)
            blocks.append(BlockGenes(names.get(table, f"block {table}"), _strings(ids)))
        self._missing: Missing = options.get("missing", "error")
        duplicates: Duplicates = options.get("duplicates", "error")
        self._space: GeneSpace = gene_space(genes, blocks, table_of, self._missing, duplicates)
        self._block_stops = np.array([block.stop for block in cells.info.blocks])

    def __repr__(self) -> str:
        return f"GeneView({self._cells!r}): {len(self._space.names)} genes"

    # -- what it holds ---------------------------------------------------------------------

    @property
    def info(self) -> Info:
        """One block, of the vocabulary's genes."""
        return self._info

    @cached_property
    def _info(self) -> Info:
        source = self._cells.info
        return replace(source, blocks=(Block(source.n_obs, len(self._space.names)),))

    @property
    def gene_names(self) -> NDArray[Any]:
        """Ids of the genes, as objects."""
        return self._var.blocks[0].column(INDEX)

    @property
    def var_names(self) -> NDArray[Any]:
        """Ids of the genes, as of one archive."""
        return self.gene_names

    @property
    def var(self) -> pd.DataFrame:
        """The table of genes: their ids, and no columns, in which archives may differ."""
        return self._var.blocks[0].frame()

    @property
    def present(self) -> NDArray[np.bool_]:
        """Which genes each gene space of the archives has; spaces x n_vars."""
        return self._space.present

    def spaces(self, rows: csr.Rows) -> NDArray[np.int64]:
        """The gene space of cells, a row of :attr:`present` each."""
        return self._tables(csr.positions(rows, self.n_obs))

    def coverage(self) -> pd.DataFrame:
        """How many genes of the vocabulary the cells of each origin have.

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
        """What tells these cells and genes from others at the same place."""
        return *self._cells.identity, self._names_hash, self._missing

    @cached_property
    def _names_hash(self) -> str:
        return hashlib.sha256("\n".join(self.gene_names).encode()).hexdigest()

    @cached_property
    def _var(self) -> VarFeatures:
        return VarFeatures(
            _Vocabulary(self._space.names), self.info, ("feature_id", "var_feature_id")
        )

    def var_features(self) -> VarFeatures:
        """The vocabulary, as the only column of var."""
        return self._var

    def origins(self) -> list[Origin]:
        """Where the cells came from, in their order."""
        return [origin._replace(block=0) for origin in self._cells.origins()]

    # -- reading ---------------------------------------------------------------------------

    def _tables(self, at: NDArray[np.int64]) -> NDArray[np.int64]:
        if len(self._space.present) == 1:
            return np.zeros(len(at), np.int64)
        return self._space.table_of[np.searchsorted(self._block_stops, at, side="right")]

    def _request(self, at: NDArray[np.int64]) -> Request:
        return self._cells._request(at)

    def _read(
        self,
        at: NDArray[np.int64],
        ordered: bool,
        index_dtype: DTypeLike | None,
        *,
        concurrently: bool = False,
    ) -> CellBatch:
        space, n_vars = self._space, self.info.max_n_vars
        given = self.index_dtype if index_dtype is None else np.dtype(index_dtype)
        if not np.can_cast(self.index_dtype, given, "safe"):
            raise OutputError(f"index_dtype {given} does not hold the ids of {n_vars} genes")
        request, tables = self._cells._request(at), self._tables(at)
        dtypes = Dtypes(self._cells.data_dtype, self._cells.index_dtype, given)
        lookup = Lookup(space.genes, space.bounds, space.in_order, tables)
        rows = join_mapped(request, dtypes, lookup, n_vars, ordered=ordered)
        # The kernel gives no id beyond the vocabulary.
        batch = CellBatch(*rows[:3], n_vars=n_vars, rows=at, largest=n_vars - 1)
        if self._missing != "mask":
            return batch
        return replace(batch, present=space.present, spaces=tables)

    def _vectors(self, key: str, rows: NDArray[np.int64]) -> NDArray[Any]:
        return self._cells._vectors(key, rows)

    def obs_features(self) -> ObsFeatures | None:
        """Columns of obs by cell; None where there is no obs."""
        return self._cells.obs_features()

    @property
    def graph(self) -> NeighborGraph | None:
        """The neighbour graph of the cells."""
        return self._cells.graph

    @property
    def neighbor_keys(self) -> list[str]:
        """Keys of the neighbour graphs of the cells."""
        return self._cells.neighbor_keys

    def _graph_of(self, key: str) -> NeighborGraph | None:
        return self._cells._graph_of(key)

    def number_nonzero_values(self) -> int:
        """Stored values in this gene space; they are counted, which reads all cells."""
        counted = 0
        for start, stop in csr.spans(self.n_obs, _COUNTED_CELLS):
            # Genes that are one are summed where rows are in order.
            counted += len(self._read(np.arange(start, stop), True, None).data)
        return counted

    @property
    def data_dtype(self) -> np.dtype[Any]:
        """Type of the stored values."""
        return self._cells.data_dtype

    @property
    def index_dtype(self) -> np.dtype[Any]:
        """Type of the column ids, unsigned."""
        return smallest_unsigned(self.info.max_n_vars - 1)

    @property
    def bytes_per_cell(self) -> float:
        """Bytes of a cell in memory before genes are left out."""
        return self._cells.bytes_per_cell

    @property
    def cells_per_chunk(self) -> float:
        """Cells, on average, that are read as one whichever of them is asked for; below 1: none."""
        return self._cells.cells_per_chunk

    def will_need(self, rows: NDArray[np.int64]) -> None:
        """Tell that some cells will be read soon; does not wait."""
        self._cells.will_need(rows)


#: Cells that are read at once to count their values.
_COUNTED_CELLS = 4_096


class _Vocabulary:
    """A var table of names alone."""

    def __init__(self, names: pa.Array) -> None:
        self.path = "the vocabulary"
        self._names = names

    def table_schema(self, name: str, /) -> pa.Schema:
        return self.read_table(name).schema

    def read_table(self, name: str, /, columns: Sequence[str] | None = None) -> pa.Table:
        import pyarrow as pa

        return pa.table({INDEX: self._names})


def _strings(ids: pa.Array) -> pa.Array:
    """Gene ids of any type as strings."""
    import pyarrow as pa

    if pa.types.is_dictionary(ids.type):
        ids = ids.dictionary_decode()
    return ids.cast(pa.large_string())
