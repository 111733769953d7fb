"""Metadata of cells: counts, tables, genes and graphs."""

from __future__ import annotations

from abc import abstractmethod
from typing import TYPE_CHECKING, Any, NamedTuple, SupportsIndex

import numpy as np
from numpy.typing import NDArray

from scdl.archive import csr
from scdl.archive.features import VarFeatures
from scdl.archive.fields import Field
from scdl.archive.frames import frame_of
from scdl.archive.gene_names import check_one_space
from scdl.archive.graph import NeighborGraph
from scdl.archive.schema import INDEX, Info
from scdl.dataset import summary
from scdl.dataset.cell_table import CellTable

if TYPE_CHECKING:
    import pandas as pd


class Origin(NamedTuple):
    """Cells of one origin: a feature block, or a part of one.

    Attributes
    ----------
    name
        Name of the origin: a member of a collection, or the source file.
    block
        Index of the feature block.
    n_obs
        Number of cells.
    """

    name: str
    block: int
    n_obs: int


class Storage(NamedTuple):
    """How cells are stored, which determines how they are best read.

    Attributes
    ----------
    cells_per_chunk
        Average number of cells that are always read together; less than 1 without chunks.
    bytes_per_cell
        Average bytes of a cell that a request fetches, compressed if they are; those in memory if
        `request_bytes` is 0.
    request_bytes
        Bytes that a request should ask for; 0 if small ones cost little.
    """

    cells_per_chunk: float
    bytes_per_cell: float
    request_bytes: int


class Cells(CellTable, summary.Summarized):
    """Cells of one or many archives: their number, tables, genes and graphs."""

    #: Feature blocks and other metadata from the attributes of the archives.
    info: Info
    _var: VarFeatures

    def var_features(self) -> VarFeatures:
        """Columns of var by cell.

        Examples
        --------
        >>> data.var_features().lookup(0, "var_feature_id")
        ([array(['CD19', 'CD3E', 'GNLY', 'LYZ'], dtype=object)], 'cells.h5ad')
        """
        return self._var

    @property
    @abstractmethod
    def graph(self) -> NeighborGraph | None:
        """The neighbour graph; None if there is none or none was requested."""

    @property
    @abstractmethod
    def neighbor_keys(self) -> list[str]:
        """Keys of the available neighbour graphs."""

    @abstractmethod
    def _graph_of(self, key: str) -> NeighborGraph | None:
        """A graph by key; None if it is not among :attr:`neighbor_keys`."""

    @property
    @abstractmethod
    def fields(self) -> list[str]:
        """Names of the fields: further matrices of all cells, with the same genes."""

    @abstractmethod
    def _field(self, name: str) -> Field:
        """How a field is stored; raise FeatureNotFoundError if there is none of that name."""

    def _n_vars_of(self, index: SupportsIndex) -> int:
        blocks = self.info.blocks
        if len(blocks) == 1:
            return blocks[0].n_vars
        return blocks[self.info.block_of(csr.position(index, self.n_obs))].n_vars

    @abstractmethod
    def number_nonzero_values(self) -> int:
        """Number of stored values."""

    @property
    def identity(self) -> tuple[Any, ...]:
        """A key that differs if the cells at the same path change."""
        return self.n_obs, self.number_nonzero_values(), tuple(self.n_vars)

    @property
    @abstractmethod
    def data_dtype(self) -> np.dtype[Any]:
        """Dtype of the values that are read."""

    @property
    @abstractmethod
    def index_dtype(self) -> np.dtype[Any]:
        """Dtype of the stored column ids, unsigned."""

    @property
    @abstractmethod
    def bytes_per_cell(self) -> float:
        """Average memory size of the stored values and column ids of a cell, in bytes."""

    @property
    @abstractmethod
    def storage(self) -> Storage:
        """How the cells are stored, which determines how they are best read."""

    def origins(self) -> list[Origin]:
        """Origins of the cells, in order.

        Examples
        --------
        >>> [(origin.name, origin.n_obs) for origin in data.origins()]
        [('cells.h5ad', 6)]
        """
        pairs = zip(self.info.blocks, self.info.block_lengths, strict=True)
        return [Origin(block.label or f"block {i}", i, n) for i, (block, n) in enumerate(pairs)]

    @property
    @abstractmethod
    def gene_spaces(self) -> NDArray[np.int64]:
        """Gene space of each feature block, numbered from 0.

        Blocks with the same gene names in the same order share a gene space.
        """

    def spaces_of(self, rows: csr.Rows) -> NDArray[np.int64] | None:
        """Gene space of cells, as numbered by :attr:`gene_spaces`; None if all cells share one.

        Examples
        --------
        >>> data.spaces_of([0, 3]) is None  # all cells have the same genes
        True
        """
        if len(self.info.blocks) == 1 or not self.gene_spaces.any():
            return None
        at = csr.positions(rows, self.n_obs)
        spaces: NDArray[np.int64] = self.gene_spaces[self.info.blocks_of(at)]
        return spaces

    @property
    def var(self) -> pd.DataFrame:
        """The table of genes, indexed by their names.

        If several feature blocks share the gene space, it has the columns that all of them share;
        :meth:`var_features` has the others.

        Raises
        ------
        GeneError
            The cells have different gene spaces.
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
        """A key for each feature block that differs between blocks with different genes."""
        return [str(i) for i in range(len(self.info.blocks))]

    @property
    def n_obs(self) -> int:
        """Number of cells."""
        return self.info.n_obs

    @property
    def n_vars(self) -> list[int]:
        """Number of genes of each feature block."""
        return [block.n_vars for block in self.info.blocks]

    @property
    def max_n_vars(self) -> int:
        """Number of genes of the widest feature block."""
        return self.info.max_n_vars

    def __len__(self) -> int:
        return self.n_obs

    def __str__(self) -> str:
        return summary.text(*self._summary())

    def _summary(self) -> tuple[str, summary.Facts]:
        title = f"{type(self).__name__}: {summary.size(self.n_obs, self.n_vars)}"
        return title, self._facts()

    def _facts(self) -> summary.Facts:
        """The facts of the summary; only what is fast to determine."""
        obs = self.obs_features()
        return {
            "obs": summary.names(obs.columns.names) if obs else "none",
            "graphs": summary.names(self.neighbor_keys),
        }
