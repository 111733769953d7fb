"""What is known of cells without reading them: counts, tables, genes, graphs."""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import TYPE_CHECKING, Any, NamedTuple, SupportsIndex

import numpy as np
from numpy.typing import NDArray

from scdl.archive import csr
from scdl.archive.features import ObsFeatures, VarFeatures
from scdl.archive.frames import frame_of
from scdl.archive.gene_names import check_one_space
from scdl.archive.graph import NeighborGraph
from scdl.archive.schema import INDEX, Info
from scdl.dataset import summary
from scdl.errors import FeatureNotFoundError

if TYPE_CHECKING:
    import pandas as pd


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


class Cells(ABC):
    """Cells of one or many archives: their number, tables, genes and graphs."""

    #: Feature blocks, and what the archives say of themselves.
    info: Info

    @property
    def obs(self) -> pd.DataFrame:
        """The table of cells, indexed by their names where these are stored; read each time."""
        return self._required_obs().columns.frame()

    @property
    def obs_names(self) -> NDArray[Any]:
        """Names of the cells, as objects."""
        return self._required_obs().columns.column(INDEX)

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

    @property
    @abstractmethod
    def neighbor_keys(self) -> list[str]:
        """Keys of the neighbour graphs that can be asked for."""

    @abstractmethod
    def _graph_of(self, key: str) -> NeighborGraph | None:
        """A graph by key; None where it is not among :attr:`neighbor_keys`."""

    def _n_vars_of(self, index: SupportsIndex) -> int:
        blocks = self.info.blocks
        if len(blocks) == 1:
            return blocks[0].n_vars
        return blocks[self.info.block_of(csr.position(index, self.n_obs))].n_vars

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
