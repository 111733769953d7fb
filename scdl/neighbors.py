"""Neighbours of cells: a cells x cells graph, and sampling from it."""

from __future__ import annotations

import os
from collections.abc import Iterator
from enum import StrEnum
from typing import Any, NamedTuple, SupportsIndex

import numpy as np
from numpy.typing import NDArray

from scdl import csr
from scdl.errors import NeighborError
from scdl.schema import INDICES, INDPTR, graph_array, keys
from storage_backends.base import ArrayStore

_OFFSETS_AT_ONCE = 1 << 20


class NeighborSamplingStrategy(StrEnum):
    """How :meth:`NeighborGraph.sample` chooses among the neighbours of a cell."""

    #: Each with the same probability.
    RANDOM = "random"
    #: The one stored first.
    FIRST = "first"


class NeighborStats(NamedTuple):
    """Counts over a graph."""

    total: int
    least: int
    most: int
    n_isolated: int


class NeighborGraph:
    """One graph of an archive.

    Parameters
    ----------
    store
        The archive.
    key
        Key of the graph, as in ``obsp``.
    strategy
        How to sample; its value as a string will do.
    fallback_to_identity
        Whether a cell without neighbours is its own; otherwise sampling one is an error.
    """

    def __init__(
        self,
        store: ArrayStore,
        key: str,
        strategy: NeighborSamplingStrategy | str = NeighborSamplingStrategy.RANDOM,
        *,
        fallback_to_identity: bool = True,
    ) -> None:
        if key not in keys(store.arrays, "graphs"):
            raise NeighborError(
                f"{store.path}: there is no neighbour graph {key!r}; "
                f"it holds: {', '.join(keys(store.arrays, 'graphs')) or 'none'}"
            )
        self.key = key
        self._store = store
        self._prefix = graph_array(key, "")
        self._strategy = NeighborSamplingStrategy(strategy)
        self._fallback = fallback_to_identity
        self._rng: tuple[int, np.random.Generator] | None = None

    @property
    def n_obs(self) -> int:
        """Cells."""
        return self._store.spec(self._prefix + INDPTR).length - 1

    def neighbors(self, index: SupportsIndex) -> csr.SparseRows:
        """Neighbours of one cell and their weights."""
        row = np.array([csr.position(index, self.n_obs)], np.int64)
        return csr.read(self._store, self._prefix, row)

    def sample(self, index: SupportsIndex, rng: np.random.Generator | None = None) -> int:
        """One neighbour of a cell.

        Raises
        ------
        NeighborError
            It has none, and is not its own.
        """
        found = self.neighbors(index).indices
        if len(found) == 0:
            if self._fallback:
                return csr.position(index, self.n_obs)
            raise NeighborError(
                f"{self._store.path}: cell {index} has no neighbours; "
                "fallback_to_identity=True gives the cell itself"
            )
        if self._strategy is NeighborSamplingStrategy.FIRST:
            return int(found[0])
        return int(found[(rng or self._own_rng()).integers(len(found))])

    def sample_many(self, rows: NDArray[np.int64], draws: NDArray[np.float64]) -> NDArray[np.int64]:
        """Neighbours of many cells at once, drawn with replacement.

        Parameters
        ----------
        rows
            n positions, int64.
        draws
            n x k numbers in [0, 1), each of which chooses one neighbour.

        Returns
        -------
        ndarray
            n x k rows, int64.

        Raises
        ------
        NeighborError
            A cell has none, and is not its own.
        """
        starts, stops = csr.plan(self._store, self._prefix, rows)
        counts = stops - starts
        alone = counts == 0
        if alone.any() and not self._fallback:
            self.sample(int(rows[alone.argmax()]))
        if self._strategy is NeighborSamplingStrategy.FIRST:
            draws = np.zeros_like(draws)
        chosen = starts[:, None] + (draws * counts[:, None]).astype(np.int64)
        chosen = chosen[~alone].ravel()
        found = np.empty(len(chosen), self._store.spec(self._prefix + INDICES).dtype)
        self._store.read_ranges(self._prefix + INDICES, chosen, chosen + 1, found)
        out = np.repeat(rows[:, None], draws.shape[1], axis=1)
        out[~alone] = found.reshape(-1, draws.shape[1])
        return out

    def sample_batch(
        self, rows: NDArray[np.int64], rng: np.random.Generator | None = None
    ) -> NDArray[np.int64]:
        """One neighbour of each of many cells, as by :meth:`sample`."""
        return self.sample_many(rows, (rng or self._own_rng()).random((len(rows), 1)))[:, 0]

    def _own_rng(self) -> np.random.Generator:
        """A generator of this process: forked workers must not draw the same numbers."""
        if self._rng is None or self._rng[0] != os.getpid():
            self._rng = os.getpid(), np.random.default_rng()
        return self._rng[1]

    def __getstate__(self) -> dict[str, Any]:
        return self.__dict__ | {"_rng": None}

    def stats(self) -> NeighborStats:
        """Counts over all cells, in constant memory."""
        total, least, most, n_isolated = 0, np.iinfo(np.int64).max, 0, 0
        for counts in self._counts():
            total += int(counts.sum())
            least = min(least, int(counts.min()))
            most = max(most, int(counts.max()))
            n_isolated += int((counts == 0).sum())
        return NeighborStats(total, least if self.n_obs else 0, most, n_isolated)

    def _counts(self) -> Iterator[NDArray[np.int64]]:
        for start in range(0, self.n_obs, _OFFSETS_AT_ONCE):
            stop = min(start + _OFFSETS_AT_ONCE, self.n_obs)
            offsets = self._store.read(self._prefix + INDPTR, start, stop + 1)
            yield offsets[1:].astype(np.int64) - offsets[:-1].astype(np.int64)
