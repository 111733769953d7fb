"""BioNeMo-SCDL's documented methods for neighbours."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, SupportsIndex

import numpy as np
from numpy.typing import NDArray

from scdl.archive import csr
from scdl.archive.graph import NeighborGraph, Rng
from scdl.dataset.batch import NeighborPair
from scdl.dataset.documented import DocumentedReader
from scdl.dataset.map_dataset import MapDataset
from scdl.errors import NeighborError


class CellReader(DocumentedReader):
    """Cells to read: of one archive or many, with all or selected genes; and their neighbours."""

    def neighbor_graph(self, key: str | None = None) -> NeighborGraph:
        """A neighbour graph by key; None: the one that the dataset was opened with.

        Raises
        ------
        NeighborError
            There is no graph, or none with that key, or it is not cells x cells.

        Examples
        --------
        >>> graph = data.neighbor_graph("connectivities")
        >>> graph.n_obs
        6
        """
        graph = self._graph_of(key) if key is not None else self.graph
        if graph is None:
            known = ", ".join(self.neighbor_keys)
            what = "no neighbours were loaded" if key is None else f"there is no graph {key!r}"
            choice = f"choose one of {known} with key=… or neighbor_key=…"
            make = "convert with neighbor_key=…, and open with load_neighbors=True"
            raise NeighborError(f"{what}: {choice if known else make}")
        return graph

    def get_neighbor_indices_for_cell(
        self, cell_index: SupportsIndex, *, key: str | None = None
    ) -> NDArray[Any]:
        """Rows of a cell's neighbours, uint32; empty if it has none.

        Examples
        --------
        >>> data.get_neighbor_indices_for_cell(0)
        array([1], dtype=uint32)
        """
        return self.neighbor_graph(key).neighbors(cell_index).indices

    def get_neighbor_weights_for_cell(
        self, cell_index: SupportsIndex, *, key: str | None = None
    ) -> NDArray[Any]:
        """Weights of a cell's neighbours, float32; empty if it has none.

        Examples
        --------
        >>> data.get_neighbor_weights_for_cell(0)
        array([1.], dtype=float32)
        """
        return self.neighbor_graph(key).neighbors(cell_index).data

    def sample_neighbor_index(
        self, cell_index: SupportsIndex, *, rng: Rng = None, key: str | None = None
    ) -> int:
        """Sample one neighbour of a cell by the chosen strategy; the cell itself if it has none.

        Without `rng` every process uses its own generator.

        Examples
        --------
        >>> data.sample_neighbor_index(0)
        1
        """
        return self.neighbor_graph(key).sample(cell_index, rng)

    def sample_neighbors(
        self, rows: csr.Rows, k: int = 1, *, rng: Rng = None, key: str | None = None
    ) -> NDArray[np.int64]:
        """Sample neighbours of many cells by the chosen strategy, with replacement.

        Parameters
        ----------
        rows
            n cells, as for :meth:`read_rows`.
        k
            Number of neighbours per cell.
        rng
            Random generator, or a seed; without it every process uses its
            own generator.
        key
            Key of the graph; None: the one that the dataset was opened with.

        Returns
        -------
        ndarray
            n x k rows, int64; a cell without neighbours is its own neighbour, unless the dataset
            was opened with ``fallback_to_identity=False``.

        Raises
        ------
        RowIndexError
            A row is out of range.
        NeighborError
            There is no such graph; a cell has no neighbours and is not its
            own; or the graph is invalid: a neighbour is not a cell, or a weight that is
            used is negative or not finite.

        Examples
        --------
        >>> data.sample_neighbors([0, 3, 5], k=2, rng=0)  # cell 5 has no neighbour but itself
        array([[1, 1],
               [4, 4],
               [5, 5]])
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
        """One cell and one sampled neighbour, each as returned by :meth:`get_row`.

        Returns
        -------
        dict
            ``current_cell``, ``next_cell``, ``current_cell_index``, ``next_cell_index``,
            ``features``; or ``var_features`` and ``obs_features`` instead of the last, if one
            of the argument names of BioNeMo-SCDL 0.1.3 is used.

        Examples
        --------
        >>> pair = data.get_row_with_neighbor(0)
        >>> pair["current_cell_index"], pair["next_cell_index"]
        (0, 1)
        >>> pair["next_cell"]
        (array([3.], dtype=float32), array([0], dtype=uint8))
        """
        neighbor = self._neighbor_of(index, rng, key)
        positional = return_features, feature_vars, return_obs_features, obs_feature_names
        named = {"return_var_features": return_var_features, "var_feature_names": var_feature_names}
        return self._pair(self.get_row, index, neighbor, positional, named)

    def _neighbor_of(self, index: SupportsIndex, rng: Rng, key: str | None) -> int:
        """Sample a neighbour; overridden documented methods may not take our keywords."""
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
        """One cell and one sampled neighbour, both dense; otherwise as the sparse form.

        Examples
        --------
        >>> pair = data.get_row_padded_with_neighbor(0)
        >>> pair["current_cell"], pair["next_cell"]
        (array([0., 2., 0., 1.], dtype=float32), array([3., 0., 0., 0.], dtype=float32))
        """
        neighbor = self._neighbor_of(index, rng, key)
        positional = return_features, feature_vars, return_obs_features, obs_feature_names
        named = {"return_var_features": return_var_features, "var_feature_names": var_feature_names}
        return self._pair(self.get_row_padded, index, neighbor, positional, named)

    def _pair(
        self,
        read: Callable[..., Any],
        index: SupportsIndex,
        neighbor: int,
        requested: Sequence[Any],
        named: Mapping[str, Any],
    ) -> dict[str, Any]:
        """A cell and its neighbour, read by a documented method, with the requested features."""
        current, *features = read(index, *requested, **named)
        names = ("features",) if len(features) == 1 else ("var_features", "obs_features")
        at = csr.position(index, self.n_obs)
        spaces = self.spaces_of([at, neighbor])
        return NeighborPair(
            {
                "current_cell": current,
                "next_cell": read(neighbor)[0],
                "current_cell_index": at,
                "next_cell_index": neighbor,
                **dict(zip(names, features, strict=True)),
            },
            n_vars=self.max_n_vars,
            spaces=None if spaces is None else tuple(spaces.tolist()),
        )

    def neighbor_pairs(self) -> NeighborPairs:
        """Cells with a sampled neighbour each, as a dataset for a ``DataLoader``.

        Examples
        --------
        >>> pairs = data.neighbor_pairs()
        >>> len(pairs), pairs[0]["next_cell_index"]
        (6, 1)
        """
        return NeighborPairs(self)

    def get_neighbor_stats(self, *, key: str | None = None) -> dict[str, Any]:
        """Statistics of a neighbour graph, in constant memory, or only ``has_neighbors: False``.

        Examples
        --------
        >>> stats = data.get_neighbor_stats()
        >>> stats["total_connections"], stats["cells_with_no_neighbors"]
        (5, 1)
        """
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
    """Dataset of the results of ``get_row_with_neighbor``: cells with a sampled neighbour each.

    ``DataLoader(ds.neighbor_pairs(), collate_fn=collate_neighbor_sparse_matrix_batch)`` reads a
    batch at once.

    Parameters
    ----------
    cells
        A dataset with a neighbour graph.

    Examples
    --------
    >>> from torch.utils.data import DataLoader
    >>> collate = scdl.collate_neighbor_sparse_matrix_batch
    >>> pairs = DataLoader(data.neighbor_pairs(), batch_size=3, collate_fn=collate)
    >>> next(iter(pairs))["next_cell_indices"]
    [1, 2, 3]
    """

    def __init__(self, cells: CellReader) -> None:
        self._cells = cells
        cells.neighbor_graph()

    def __len__(self) -> int:
        return len(self._cells)

    def __getitem__(self, index: SupportsIndex) -> dict[str, Any]:
        return self._cells.get_row_with_neighbor(index)

    def __getitems__(self, indices: Sequence[int]) -> Sequence[dict[str, Any]]:
        """Pairs of a batch, read together."""
        # Call overridden documented methods cell by cell.
        for name in ("sample_neighbor_index", "get_row_with_neighbor", "get_row"):
            method = getattr(self._cells, name)
            if getattr(method, "__func__", None) is not getattr(CellReader, name):
                return [self[i] for i in indices]
        from scdl.dataset.collate import RowPairs

        rows = csr.positions(list(indices), self._cells.n_obs)
        neighbors = self._cells.neighbor_graph().sample_batch(rows)
        read = self._cells._read_for_tensors
        return RowPairs(read(rows), read(neighbors))
