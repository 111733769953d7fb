"""The joint neighbour graph of the members of a collection."""

from __future__ import annotations

from collections.abc import Sequence
from typing import SupportsIndex

import numpy as np
from numpy.typing import NDArray

from scdl.archive import csr
from scdl.archive.graph import NeighborGraph, NeighborStats
from scdl.archive.joining import read_rows
from scdl.archive.neighbor_choice import NeighborSamplingStrategy, choose
from scdl.archive.requests import Matrices, Request, RowForm
from scdl.archive.schema import DATA, GRAPH_DTYPES, INDICES
from scdl.collection.members import Members
from scdl.errors import NeighborError


class MemberGraph(NeighborGraph):
    """The neighbour graphs of members as one, with ids shifted by each member's first row.

    Cells of members without a graph have no neighbours.

    Parameters
    ----------
    members
        The archives.
    key
        Name of the graph.
    keys
        Key of the graph in each member, or None if it has none.
    strategy
        Sampling strategy, or its value as a string.
    fallback_to_identity
        Whether a cell without neighbours is its own neighbour.
    """

    def __init__(
        self,
        members: Members,
        key: str,
        keys: Sequence[str | None],
        strategy: NeighborSamplingStrategy | str,
        *,
        fallback_to_identity: bool,
    ) -> None:
        self.key = key
        self._members, self._keys = members, keys
        self._strategy = NeighborSamplingStrategy(strategy)
        self._fallback = fallback_to_identity
        self._rng = None

    def _graph(self, number: int) -> NeighborGraph | None:
        key = self._keys[number]
        return None if key is None else self._members[number].neighbor_graph(key)

    @property
    def n_obs(self) -> int:
        """Number of cells."""
        return int(self._members.starts[-1])

    def neighbors(self, index: SupportsIndex) -> csr.SparseRows:
        """Neighbours of one cell and their weights."""
        at = np.array([csr.position(index, self.n_obs)])
        ((number, rows, _),) = self._members.split(at)
        graph = self._graph(number)
        if graph is None:
            none = np.empty(0, GRAPH_DTYPES[DATA]), np.empty(0, GRAPH_DTYPES[INDICES])
            return csr.SparseRows(*none, np.zeros(2, np.int64))
        found = graph.neighbors(int(rows[0]))
        ids = found.indices.astype(np.int64) + self._members.starts[number]
        fits = self.n_obs <= 1 + np.iinfo(GRAPH_DTYPES[INDICES]).max
        return found._replace(indices=ids.astype(GRAPH_DTYPES[INDICES]) if fits else ids)

    def sample_many(self, rows: NDArray[np.int64], draws: NDArray[np.float64]) -> NDArray[np.int64]:
        """Sample neighbours of many cells at once, with replacement."""
        sampled = self._sample_mapped(rows, draws)
        # Sampling by member raises the error of a damaged member.
        return self._sample_by_member(rows, draws) if sampled is None else sampled

    def _sample_mapped(
        self, rows: NDArray[np.int64], draws: NDArray[np.float64]
    ) -> NDArray[np.int64] | None:
        """Sample with a single read; None if a graph is not mapped to memory or is invalid."""
        which, local = self._members.find(rows)
        numbers, which = np.unique(which, return_inverse=True)
        keys = [self._keys[number] for number in numbers.tolist()]
        if None in keys:
            return None
        graphs = [
            self._members[number]._graph_matrix(str(key))
            for number, key in zip(numbers.tolist(), keys, strict=True)
        ]
        dtypes = {tuple(view.dtype for view in graph.views[:2]) for graph in graphs}
        if len(dtypes) != 1 or () in dtypes:
            return None
        paths = [graph.store.path for graph in graphs]
        data, indices = dtypes.pop()
        matrices = Matrices(graphs, paths, data, indices, self.n_obs, is_sorted=False)
        near = read_rows(Request(matrices, which, local), RowForm())
        chosen, bad = choose(self._strategy, near.indptr, draws, lambda: near.data)
        has_one = chosen[:, 0] >= 0
        if bad >= 0 or not (self._fallback or has_one.all()):
            return None
        found = near.indices[(near.indptr[:-1, None] + chosen)[has_one]].astype(np.int64)
        first = self._members.starts[numbers][which[has_one], None]
        size = np.diff(self._members.starts)[numbers][which[has_one], None]
        # The largest uint64 ids are negative as int64.
        if ((found < 0) | (found >= size)).any():
            return None
        out = np.repeat(rows[:, None], draws.shape[1], axis=1)
        out[has_one] = found + first
        return out

    def _sample_by_member(
        self, rows: NDArray[np.int64], draws: NDArray[np.float64]
    ) -> NDArray[np.int64]:
        out = np.repeat(rows[:, None], draws.shape[1], axis=1)
        for number, local, places in self._members.split(rows):
            graph = self._graph(number)
            if graph is not None:
                found = graph.sample_many(local, draws[places])
                out[places] = found + self._members.starts[number]
            elif not self._fallback:
                raise NeighborError(
                    f"{self._members.records[number].path}: cell {local[0]} has no neighbours, "
                    f"since there is no graph {self.key!r}; pass fallback_to_identity=True to "
                    "sample the cell itself"
                )
        return out

    def stats(self) -> NeighborStats:
        """Counts over all cells, in constant memory."""
        stats = []
        for number, record in enumerate(self._members.records):
            if record.n_obs:
                graph = self._graph(number)
                isolated = NeighborStats(0, 0, 0, record.n_obs)
                stats.append(isolated if graph is None else graph.stats())
        return NeighborStats(
            sum(part.total for part in stats),
            min((part.least for part in stats), default=0),
            max((part.most for part in stats), default=0),
            sum(part.n_isolated for part in stats),
        )
