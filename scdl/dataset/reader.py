"""The documented API, written once over what a dataset can read."""

from __future__ import annotations

import os
from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any, NamedTuple, SupportsIndex, Unpack, cast, overload

import numpy as np
from numpy.typing import DTypeLike, NDArray

from scdl.archive import csr
from scdl.archive.features import ObsFeatures, VarFeatures
from scdl.archive.frames import frame_of
from scdl.archive.gene_space import check_one_space, is_own
from scdl.archive.graph import NeighborGraph, Rng
from scdl.archive.joining import Request
from scdl.archive.schema import INDEX, Info, check_columns, names_of
from scdl.dataset import summary
from scdl.dataset.batch import CellBatch, NeighborPair
from scdl.dataset.map_dataset import MapDataset
from scdl.errors import (
    DatasetTypeError,
    FeatureNotFoundError,
    NeighborError,
    OptionError,
    RowIndexError,
)

if TYPE_CHECKING:
    import pandas as pd
    import torch
    from anndata import AnnData

    from scdl.dataset.gene_view import GeneOptions, Genes, GeneView

#: Values and column ids of one cell.
Row = tuple[NDArray[Any], NDArray[Any]]
#: Columns of var, or columns of var and values of obs; None for what was not asked for.
Features = tuple[list[Any] | None, ...]
_Asked = tuple[bool | None, Sequence[str] | None]
_NOTHING_ASKED: _Asked = (None, None)


class Origin(NamedTuple):
    """Cells that came together: a feature block, or a part of one.

    Attributes
    ----------
    name
        What they are called: a member of a collection, or the file they came from.
    block
        Their feature block.
    n_obs
        Cells.
    """

    name: str
    block: int
    n_obs: int


class CellReader(MapDataset, ABC):
    """Cells by row: what users of BioNeMo-SCDL know, over a few primitives.

    A subclass says what it holds (:attr:`info` and the other properties), and reads by
    :meth:`_read`, :meth:`_request` and :meth:`_vectors`; it may override :meth:`_row`.
    """

    @property
    @abstractmethod
    def info(self) -> Info:
        """Blocks of cells and their genes."""

    def read_rows(
        self,
        rows: csr.Rows,
        *,
        obs: str | Sequence[str] = (),
        obsm: str | Sequence[str] = (),
        genes: Genes | None = None,
        ordered: bool = True,
        index_dtype: DTypeLike | None = None,
        sum_dtype: DTypeLike | None = None,
        totals: bool = False,
    ) -> CellBatch:
        """Read cells as one batch.

        Parameters
        ----------
        rows
            One row, a slice, positions in any order (they may repeat; negative ones count from
            the end), or a mask of all cells.
        obs
            Columns of obs to read along, or one; categorical ones give their categories' values.
        obsm
            Dense vectors to read along, by key, or those of one.
        genes
            The genes to read, all of which every cell must have; :meth:`select_genes` has the
            other policies, and is what to use for many reads. ``"own"``: all genes of each cell,
            also where cells have different ones; the column ids of a cell then mean the genes of
            its own gene space, which the batch names in ``spaces``.
        ordered
            Whether the genes of each cell must come in rising order, each once. False saves time
            where an archive stores them otherwise and the batch becomes dense.
        index_dtype
            A wider integer type for the column ids; None: the one that they are stored in.
        sum_dtype
            Type of the values where an archive repeats a gene of a cell, or several genes are one,
            and their values are added; None: that of the values.
        totals
            Whether to add up the stored values of each cell, over all genes also where `genes`
            are fewer: the batch's ``totals``.

        Returns
        -------
        CellBatch
            In the order of `rows`, as wide as the gene space of its cells. Where these have
            different genes it is as wide as the widest, and is no matrix: its conversions raise
            GeneError unless `genes` was given.

        Raises
        ------
        RowIndexError
            A row is out of range, or a mask has the wrong length.
        FeatureNotFoundError
            There is no such column of obs, or no such key of obsm.
        GeneError
            `genes` are not in all cells.
        OutputError
            `index_dtype` does not hold the column ids.
        CastError
            The type of the values, or `sum_dtype`, cannot hold a sum.
        """
        cells, own = self, is_own(genes)
        if genes is not None and not own:
            cells = self.select_genes(genes)
        summed = None if sum_dtype is None else np.dtype(sum_dtype)
        at = csr.positions(rows, self.n_obs)
        batch = cells._read(at, ordered, index_dtype, sum_dtype=summed, totals=totals)
        batch = cells._with_spaces(batch, own=own)
        if totals and batch.totals is None:
            batch = replace(batch, totals=batch.row_totals())
        if not (obs or obsm):
            return batch
        return replace(
            batch,
            obs={
                name: self._required_obs().columns.values(name, batch.rows)
                for name in names_of(obs, "obs")
            },
            obsm={key: self._vectors(key, batch.rows) for key in names_of(obsm, "obsm")},
        )

    @abstractmethod
    def _read(
        self,
        at: NDArray[np.int64],
        ordered: bool,
        index_dtype: DTypeLike | None,
        *,
        concurrently: bool = False,
        sum_dtype: np.dtype[Any] | None = None,
        totals: bool = False,
    ) -> CellBatch:
        """The cells at some positions, without obs, obsm and gene spaces.

        Totals are left to the caller where the batch has all genes.
        """

    @abstractmethod
    def _request(self, at: NDArray[np.int64]) -> Request:
        """Which rows of which archives the cells at some positions are."""

    @abstractmethod
    def _vectors(self, key: str, rows: NDArray[np.int64]) -> NDArray[Any]:
        """The dense vectors `key` of cells."""

    def _vector_keys(self) -> list[str]:
        """Keys of the dense vectors that all cells have in one width."""
        return []

    @property
    def obs(self) -> pd.DataFrame:
        """The table of cells, indexed by their names where these are stored; read each time."""
        return self._required_obs().columns.frame()

    @property
    def obs_names(self) -> NDArray[Any]:
        """Names of the cells, as objects."""
        return self._required_obs().columns.column(INDEX)

    def to_anndata(self, rows: csr.Rows | None = None) -> AnnData:
        """Cells in memory as an AnnData: X, obs, var and obsm.

        Parameters
        ----------
        rows
            Which, as for :meth:`read_rows`; None: all.

        Returns
        -------
        anndata.AnnData
            With the columns of var that all sources of the cells share.

        Raises
        ------
        RowIndexError
            A row is out of range.
        GeneError
            The cells have different genes; :meth:`select_genes` brings them into one gene space.
        """
        from scdl.dataset.anndata_assembly import assemble

        return assemble(self, None if rows is None else csr.positions(rows, self.n_obs))

    def _required_obs(self) -> ObsFeatures:
        found = self.obs_features()
        if found is None:
            raise FeatureNotFoundError(f"{self!r}: there is no obs")
        return found

    @abstractmethod
    def var_features(self) -> VarFeatures:
        """Columns of var by cell."""

    @abstractmethod
    def obs_features(self) -> ObsFeatures | None:
        """Columns of obs by cell; None where the archive has no obs."""

    @property
    @abstractmethod
    def graph(self) -> NeighborGraph | None:
        """The neighbour graph; None where there is none or it was not asked for."""

    @abstractmethod
    def number_nonzero_values(self) -> int:
        """Stored values."""

    @property
    def identity(self) -> tuple[Any, ...]:
        """What tells these cells from others at the same place."""
        return self.n_obs, self.number_nonzero_values(), tuple(self.n_vars)

    @property
    @abstractmethod
    def data_dtype(self) -> np.dtype[Any]:
        """Type of the values that are read."""

    @property
    @abstractmethod
    def index_dtype(self) -> np.dtype[Any]:
        """Type of the stored column ids, unsigned."""

    @property
    @abstractmethod
    def bytes_per_cell(self) -> float:
        """Bytes that the stored values and column ids of a cell take in memory, on average."""

    @property
    @abstractmethod
    def cells_per_chunk(self) -> float:
        """Cells, on average, that are read as one whichever of them is asked for; below 1: none."""

    @abstractmethod
    def will_need(self, rows: NDArray[np.int64]) -> None:
        """Tell that some cells will be read soon, so that the storage may begin; does not wait."""

    def features(self) -> VarFeatures:
        """The same as :meth:`var_features`."""
        return self.var_features()

    # -- genes -----------------------------------------------------------------------------

    def select_genes(self, genes: Genes, **options: Unpack[GeneOptions]) -> GeneView:
        """The same cells in one gene space, whatever genes their archives have.

        Parameters
        ----------
        genes
            ``"union"`` of the genes of all feature blocks in the order they are met,
            ``"intersection"`` in the order of the first block, a list of gene ids, or the path of a
            text file with one a line.
        **options
            ``gene_column``: column of var that has the ids; default the names of the genes.
            ``missing``: what genes are that a cell's block lacks. ``"error"``, the default: there
            must be none; ``"zero"``: as if not expressed; ``"mask"``: the same, and batches tell
            which are there, in ``present`` and ``spaces``.
            ``duplicates``: what several genes of one id in a block are. ``"error"``, the default;
            ``"sum"``; ``"first"``.

        Raises
        ------
        GeneError
            Genes are missing, or have ids that are not unique, and no policy was given; a list
            repeats an id, is empty, or has nothing in common with the cells.
        GeneListNotFoundError
            There is no such file.
        FeatureNotFoundError
            A block lacks the column.
        """
        from scdl.dataset.gene_view import GeneView

        return GeneView(self, genes, **options)

    def select_matrix(self, matrix: str) -> CellReader:
        """The same cells with another matrix; OptionError where only one archive has others."""
        raise OptionError(
            f"{self}: there is no other matrix to choose; select the matrix of one archive first, "
            f"with scdl.open(path, matrix={matrix!r})"
        )

    def origins(self) -> list[Origin]:
        """Where the cells came from, in their order."""
        starts = [0, *(block.stop for block in self.info.blocks)]
        return [
            Origin(block.label or f"block {i}", i, block.stop - starts[i])
            for i, block in enumerate(self.info.blocks)
        ]

    @property
    @abstractmethod
    def gene_spaces(self) -> NDArray[np.int64]:
        """Gene space of each feature block, numbered from 0.

        Blocks share one that have the same gene names in the same order.
        """

    def spaces_of(self, rows: csr.Rows) -> NDArray[np.int64] | None:
        """Gene space of some cells, as :attr:`gene_spaces` numbers them; None: all share one."""
        if len(self.info.blocks) == 1 or not self.gene_spaces.any():
            return None
        at = csr.positions(rows, self.n_obs)
        stops = np.array([block.stop for block in self.info.blocks])
        found: NDArray[np.int64] = self.gene_spaces[np.searchsorted(stops, at, side="right")]
        return found

    def _with_spaces(
        self, batch: CellBatch, *, own: bool = False, compared: bool = False
    ) -> CellBatch:
        """The batch with the gene space of each cell, where cells of the dataset differ.

        Cells of one gene space make a batch that is as wide as that.

        Parameters
        ----------
        own
            Whether column ids were asked for as those of each cell's own genes.
        compared
            Whether the cells will be put together with those of other batches.
        """
        blocks = self.info.blocks
        if len(blocks) > 1 and len(batch) and not (own or compared):
            ends = int(batch.rows.min()), int(batch.rows.max())
            first, last = map(self.info.block_of, ends)
            if first == last:
                # The names of genes of other blocks need not be read.
                return replace(batch, n_vars=blocks[first].n_vars)
        if batch.present is not None or (spaces := self.spaces_of(batch.rows)) is None:
            return batch
        n_vars = batch.n_vars
        if not own and len(spaces) and (spaces == spaces[0]).all():
            n_vars = self._n_vars_of(batch.rows[0])
        return replace(batch, spaces=spaces, own_genes=own, n_vars=n_vars)

    @property
    def var(self) -> pd.DataFrame:
        """The table of genes, indexed by their names.

        Of several feature blocks of one gene space it has the columns that all of them share;
        :meth:`var_features` has the others.

        Raises
        ------
        GeneError
            The cells are of different gene spaces.
        """
        from storage_backends.compute.arrow import shared_columns

        check_one_space(self.gene_spaces, repr(self))
        return frame_of(shared_columns(block.table() for block in self.var_features().blocks))

    @property
    def var_names(self) -> NDArray[Any]:
        """Names of the genes, as objects; GeneError as for :attr:`var`."""
        check_one_space(self.gene_spaces, repr(self))
        return self.var_features().blocks[0].column(INDEX)

    def _block_keys(self) -> list[str]:
        """Of each feature block what it shares with no block of other genes."""
        return [str(i) for i in range(len(self.info.blocks))]

    # -- counts ----------------------------------------------------------------------------

    @property
    def n_obs(self) -> int:
        """Cells."""
        return self.info.n_obs

    @property
    def n_vars(self) -> list[int]:
        """Genes of each feature block."""
        return [block.n_vars for block in self.info.blocks]

    @property
    def max_n_vars(self) -> int:
        """Genes of the widest feature block."""
        return self.info.max_n_vars

    def __len__(self) -> int:
        return self.n_obs

    def __str__(self) -> str:
        title = f"{type(self).__name__}: {summary.size(self.n_obs, self.n_vars)}"
        return summary.text(title, self._facts())

    def _facts(self) -> summary.Facts:
        """What printing shows; nothing that takes long to find out."""
        obs = self.obs_features()
        return {
            "obs": summary.names(obs.columns.names) if obs else "none",
            "graphs": summary.names(self.neighbor_keys),
        }

    def number_of_rows(self) -> int:
        """Cells."""
        return self.n_obs

    def number_of_variables(self) -> list[int]:
        """Genes of each feature block."""
        return self.n_vars

    def number_of_values(self) -> int:
        """Cells times genes, summed over the feature blocks."""
        return sum(self.var_features().number_of_values())

    def shape(self) -> tuple[int, list[int]]:
        """Cells, and genes of each feature block."""
        return self.n_obs, self.n_vars

    def sparsity(self) -> float:
        """Share of the values that are not stored; 1.0 where there are no values at all."""
        values = self.number_of_values()
        return 1.0 - self.number_nonzero_values() / values if values else 1.0

    # -- one cell --------------------------------------------------------------------------

    def _row(self, index: SupportsIndex) -> Row:
        batch = self.read_rows(np.array([csr.position(index, self.n_obs)]))
        # As the mapped rows are, which a subclass may give.
        batch.data.flags.writeable = batch.indices.flags.writeable = False
        return batch.data, batch.indices

    def _n_vars_of(self, index: SupportsIndex) -> int:
        blocks = self.info.blocks
        if len(blocks) == 1:
            return blocks[0].n_vars
        return blocks[self.info.block_of(csr.position(index, self.n_obs))].n_vars

    @overload
    def __getitem__(self, index: SupportsIndex) -> torch.Tensor: ...  # type: ignore[overload-overlap]
    @overload
    def __getitem__(self, index: slice | Sequence[int] | NDArray[Any]) -> list[torch.Tensor]: ...
    def __getitem__(self, index: csr.Rows) -> torch.Tensor | list[torch.Tensor]:
        """One cell as a tensor of shape [2, nnz], values then column ids; or a list of them.

        A slice, positions or a mask give the list, read at once, which the documented collate
        functions take. :meth:`read_rows` gives the same cells as one batch of arrays.
        """
        if type(index) is not int and csr.are_several(index):
            return self.__getitems__(csr.positions(index, self.n_obs).tolist())
        row = cast(SupportsIndex, index)
        values, columns = self._row(row)
        from scdl.dataset.collate import row_tensor

        alone = len(self.info.blocks) == 1
        if alone or (spaces := self.spaces_of(row)) is None:
            return row_tensor(values, columns, self.max_n_vars)
        return row_tensor(values, columns, self._n_vars_of(row), int(spaces[0]))

    def __getitems__(self, indices: Sequence[int]) -> list[torch.Tensor]:
        """Cells of a batch, as a ``DataLoader`` asks for them: read at once.

        To a collate function they are what ``ds[i]`` gives; ours takes the batch as it is.
        """
        if type(self).__getitem__ is not CellReader.__getitem__:
            # What a subclass makes of a cell is not known here.
            return [self[i] for i in indices]
        from scdl.dataset.collate import RowTensors

        return RowTensors(self._read_for_tensors(indices))

    def _read_for_tensors(self, rows: csr.Rows) -> CellBatch:
        """Read cells as one batch, with column ids as tensors have them where that is safe."""
        safe = np.can_cast(self.index_dtype, np.int64, "safe")
        at = csr.positions(rows, self.n_obs)
        # As tensors of cells hold values, see tensors.row_values.
        summed = np.dtype(np.int64) if self.data_dtype.kind != "f" else None
        # Nothing else is read meanwhile: a DataLoader has a process for that.
        batch = self._read(
            at, True, np.int64 if safe else None, concurrently=True, sum_dtype=summed
        )
        return self._with_spaces(batch, compared=True)

    def get_row(
        self,
        index: SupportsIndex,
        return_features: bool = False,
        feature_vars: Sequence[str] | None = None,
        return_obs_features: bool | None = None,
        obs_feature_names: Sequence[str] | None = None,
        *,
        return_var_features: bool | None = None,
        var_feature_names: Sequence[str] | None = None,
    ) -> tuple[Row, *Features]:
        """Stored values of one cell.

        Parameters
        ----------
        index
            Row; negative ones count from the end.
        return_features
            Whether to return columns of var.
        feature_vars
            Which columns; default all.
        return_obs_features, obs_feature_names
            The same for the cell's values of columns of obs.
        return_var_features, var_feature_names
            Other names of `return_features` and `feature_vars`, from BioNeMo-SCDL 0.1.3.

        Returns
        -------
        (values, column_ids), features
            Values of the archive's dtype and their genes in rising order, both read-only;
            `features` is None, or one array of n_vars for each column.
        (values, column_ids), var_features, obs_features
            The same where one of the last four parameters is given, as BioNeMo-SCDL 0.1.3 has it;
            `obs_features` is None, or one value for each column.

        Raises
        ------
        RowIndexError
            The row is out of range.
        FeatureNotFoundError
            There is no such column.
        """
        obs, renamed = (
            (return_obs_features, obs_feature_names),
            (return_var_features, var_feature_names),
        )
        if not return_features and obs == renamed == _NOTHING_ASKED:
            return self._row(index), None
        features = self._features(index, (return_features, feature_vars), obs, renamed)
        return self._row(index), *features

    def get_row_padded(
        self,
        index: SupportsIndex,
        return_features: bool = False,
        feature_vars: Sequence[str] | None = None,
        return_obs_features: bool | None = None,
        obs_feature_names: Sequence[str] | None = None,
        *,
        return_var_features: bool | None = None,
        var_feature_names: Sequence[str] | None = None,
    ) -> tuple[NDArray[Any], *Features]:
        """One cell as a dense array of its block's n_vars; the rest as for :meth:`get_row`."""
        documented, obs = (return_features, feature_vars), (return_obs_features, obs_feature_names)
        renamed = return_var_features, var_feature_names
        features = self._features(index, documented, obs, renamed)
        values, columns = self._row(index)
        dense = np.zeros(self._n_vars_of(index), values.dtype)
        check_columns(columns, len(dense))
        dense[columns] = values
        return dense, *features

    def get_row_column(
        self, index: SupportsIndex, column: SupportsIndex, impute_missing_zeros: bool = True
    ) -> float | None:
        """One value; where none is stored 0.0, or None without `impute_missing_zeros`."""
        values, columns = self._row(index)
        n_vars = self._n_vars_of(index)
        gene = int(column.__index__())
        if not 0 <= gene < n_vars:
            raise RowIndexError(f"column {gene} is out of range for {n_vars} genes")
        at = int(np.searchsorted(columns, gene))
        if at < len(columns) and columns[at] == gene:
            value: float = values[at].item()
            return value
        return 0.0 if impute_missing_zeros else None

    def _features(
        self, index: SupportsIndex, documented: _Asked, obs: _Asked, var: _Asked
    ) -> Features:
        """What goes with a cell, as for :meth:`get_row`: whether it is asked for, which columns."""
        (wanted, names), (other, other_names), (from_obs, obs_names) = documented, var, obs
        of_var = None
        if wanted or other:
            chosen = names if other_names is None else other_names
            of_var = self.var_features().lookup(csr.position(index, self.n_obs), chosen)[0]
        if from_obs is None and obs_names is None and other is None and other_names is None:
            return (of_var,)
        if not from_obs:
            return of_var, None
        row = csr.position(index, self.n_obs)
        return of_var, self._required_obs().lookup(row, obs_names)[0]

    # -- neighbours ------------------------------------------------------------------------

    @property
    @abstractmethod
    def neighbor_keys(self) -> list[str]:
        """Keys of the neighbour graphs that can be asked for."""

    def neighbor_graph(self, key: str | None = None) -> NeighborGraph:
        """A neighbour graph by key; None: the one that the dataset was opened with.

        Raises
        ------
        NeighborError
            There is none, or none of that key; or it is not cells x cells.
        """
        graph = self._graph_of(key) if key is not None else self.graph
        if graph is None:
            known = ", ".join(self.neighbor_keys)
            what = "no neighbours were loaded" if key is None else f"there is no graph {key!r}"
            choice = f"choose one of {known} with key=… or neighbor_key=…"
            make = "convert with neighbor_key=…, and open with load_neighbors=True"
            raise NeighborError(f"{what}: {choice if known else make}")
        return graph

    @abstractmethod
    def _graph_of(self, key: str) -> NeighborGraph | None:
        """A graph by key; None where it is not among :attr:`neighbor_keys`."""

    def get_neighbor_indices_for_cell(
        self, cell_index: SupportsIndex, *, key: str | None = None
    ) -> NDArray[Any]:
        """Rows of a cell's neighbours, uint32; empty where it has none."""
        return self.neighbor_graph(key).neighbors(cell_index).indices

    def get_neighbor_weights_for_cell(
        self, cell_index: SupportsIndex, *, key: str | None = None
    ) -> NDArray[Any]:
        """Weights of a cell's neighbours, float32; empty where it has none."""
        return self.neighbor_graph(key).neighbors(cell_index).data

    def sample_neighbor_index(
        self,
        cell_index: SupportsIndex,
        *,
        rng: Rng = None,
        key: str | None = None,
    ) -> int:
        """One neighbour of a cell by the chosen strategy; the cell itself where it has none.

        Without an `rng` every process draws from a generator of its own.
        """
        return self.neighbor_graph(key).sample(cell_index, rng)

    def sample_neighbors(
        self,
        rows: csr.Rows,
        k: int = 1,
        *,
        rng: Rng = None,
        key: str | None = None,
    ) -> NDArray[np.int64]:
        """Neighbours of many cells at once, by the chosen strategy, with replacement.

        Parameters
        ----------
        rows
            n cells, as for :meth:`read_rows`.
        k
            Neighbours of each.
        rng
            Generator that draws them, or a seed; without it every process draws from a generator of
            its own.
        key
            Which graph; None: the one that the dataset was opened with.

        Returns
        -------
        ndarray
            n x k rows, int64; a cell without neighbours is its own, unless the dataset was opened
            with ``fallback_to_identity=False``.

        Raises
        ------
        RowIndexError
            A row is out of range.
        NeighborError
            There is no such graph, or none is left to choose: a cell has no neighbours and is not
            its own; or what the graph says is wrong: a neighbour is no cell, or a weight that is
            used is negative or no finite number.
        """
        if k < 1:
            raise NeighborError(f"k, the neighbours of each cell, must be at least 1, not {k}")
        graph, at = self.neighbor_graph(key), csr.positions(rows, self.n_obs)
        return graph.sample_many(at, graph.draws(len(at), k, rng))

    def get_row_with_neighbor(
        self,
        index: SupportsIndex,
        return_features: bool = False,
        feature_vars: Sequence[str] | None = None,
        return_obs_features: bool | None = None,
        obs_feature_names: Sequence[str] | None = None,
        *,
        return_var_features: bool | None = None,
        var_feature_names: Sequence[str] | None = None,
        rng: Rng = None,
        key: str | None = None,
    ) -> dict[str, Any]:
        """One cell and one sampled neighbour, as by :meth:`get_row`.

        Returns
        -------
        dict
            ``current_cell``, ``next_cell``, ``current_cell_index``, ``next_cell_index``,
            ``features``; or ``var_features`` and ``obs_features`` in place of the last, where one
            of the names of BioNeMo-SCDL 0.1.3 is given.
        """
        neighbor = self._neighbor_of(index, rng, key)
        current, *features = self.get_row(
            index,
            return_features,
            feature_vars,
            return_obs_features,
            obs_feature_names,
            return_var_features=return_var_features,
            var_feature_names=var_feature_names,
        )
        return self._pair(index, current, neighbor, self.get_row(neighbor)[0], features)

    def _neighbor_of(self, index: SupportsIndex, rng: Rng, key: str | None) -> int:
        """A sampled neighbour; who overrides the documented method need not know our keywords."""
        given: dict[str, Any] = {
            name: value for name, value in (("rng", rng), ("key", key)) if value is not None
        }
        return self.sample_neighbor_index(index, **given)

    def get_row_padded_with_neighbor(
        self,
        index: SupportsIndex,
        return_features: bool = False,
        feature_vars: Sequence[str] | None = None,
        return_obs_features: bool | None = None,
        obs_feature_names: Sequence[str] | None = None,
        *,
        return_var_features: bool | None = None,
        var_feature_names: Sequence[str] | None = None,
        rng: Rng = None,
        key: str | None = None,
    ) -> dict[str, Any]:
        """One cell and one sampled neighbour, both dense; the rest as for the sparse form."""
        neighbor = self._neighbor_of(index, rng, key)
        current, *features = self.get_row_padded(
            index,
            return_features,
            feature_vars,
            return_obs_features,
            obs_feature_names,
            return_var_features=return_var_features,
            var_feature_names=var_feature_names,
        )
        return self._pair(index, current, neighbor, self.get_row_padded(neighbor)[0], features)

    def _pair(
        self,
        index: SupportsIndex,
        current: Any,
        neighbor: int,
        following: Any,
        features: Sequence[Any],
    ) -> dict[str, Any]:
        names = ("features",) if len(features) == 1 else ("var_features", "obs_features")
        at = csr.position(index, self.n_obs)
        spaces = self.spaces_of([at, neighbor])
        return NeighborPair(
            {
                "current_cell": current,
                "next_cell": following,
                "current_cell_index": at,
                "next_cell_index": neighbor,
                **dict(zip(names, features, strict=True)),
            },
            n_vars=self.max_n_vars,
            spaces=None if spaces is None else tuple(spaces.tolist()),
        )

    def neighbor_pairs(self) -> NeighborPairs:
        """The cells with a sampled neighbour each, as a dataset for a ``DataLoader``."""
        return NeighborPairs(self)

    def get_neighbor_stats(self, *, key: str | None = None) -> dict[str, Any]:
        """Counts over a neighbour graph, in constant memory, or only ``has_neighbors: False``."""
        if key is None and self.graph is None:
            return {"has_neighbors": False}
        stats = self.neighbor_graph(key).stats()
        return {
            "has_neighbors": True,
            "total_connections": stats.total,
            "min_neighbors_per_cell": stats.least,
            "max_neighbors_per_cell": stats.most,
            "avg_neighbors_per_cell": stats.total / self.n_obs if self.n_obs else 0.0,
            "cells_with_no_neighbors": stats.n_isolated,
        }


class NeighborPairs(MapDataset):
    """Cells and a sampled neighbour of each, what ``get_row_with_neighbor`` gives as a dataset.

    ``DataLoader(ds.neighbor_pairs(), collate_fn=collate_neighbor_sparse_matrix_batch)`` reads a
    batch at once.

    Parameters
    ----------
    cells
        A dataset with a neighbour graph.
    """

    def __init__(self, cells: CellReader) -> None:
        self._cells = cells
        cells.neighbor_graph()

    def __len__(self) -> int:
        return len(self._cells)

    def __getitem__(self, index: SupportsIndex) -> dict[str, Any]:
        return self._cells.get_row_with_neighbor(index)

    def __getitems__(self, indices: Sequence[int]) -> Sequence[dict[str, Any]]:
        """Pairs of a batch, read at once."""
        # What stands in place of the documented methods is asked, cell by cell.
        for name in ("sample_neighbor_index", "get_row_with_neighbor", "get_row"):
            method = getattr(self._cells, name)
            if getattr(method, "__func__", None) is not getattr(CellReader, name):
                return [self[i] for i in indices]
        from scdl.dataset.collate import RowPairs

        rows = csr.positions(list(indices), self._cells.n_obs)
        neighbors = self._cells.neighbor_graph().sample_batch(rows)
        read = self._cells._read_for_tensors
        return RowPairs(read(rows), read(neighbors))


def as_cells(given: object) -> CellReader:
    """What was given as cells to read.

    Raises
    ------
    DatasetTypeError
        It is something else; the message says how to get from it to a dataset.
    """
    if isinstance(given, CellReader):
        return given
    kind = f"{type(given).__module__.partition('.')[0]}.{type(given).__name__}"
    if isinstance(given, str | os.PathLike):
        kind, advice = f"the path {os.fspath(given)!r}", "open it with scdl.open(path)"
    elif kind.startswith("zarr."):
        advice = "open the path of its store with scdl.open(path)"
    elif kind.startswith("anndata."):
        advice = "write it to a file, convert that with scdl.convert, and open the archive"
    else:
        advice = "open an archive with scdl.open(path)"
    raise DatasetTypeError(f"cells are read from a dataset or a collection, not {kind}; {advice}")
