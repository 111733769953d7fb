"""Neighbour graphs (cells x cells), and sampling of neighbours."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple, SupportsIndex

import numpy as np
from numpy.typing import NDArray

from scdl.archive import csr
from scdl.archive.elements import graph_keys, read_items
from scdl.archive.neighbor_choice import NeighborSamplingStrategy, choose
from scdl.archive.schema import DATA, INDICES, INDPTR, NEIGHBOR_KEY, graph_array
from scdl.archive.stored_rows import StoredRows
from scdl.errors import NeighborError
from storage_backends.base import ArrayStore

_OFFSETS_AT_ONCE = 1 << 20


#: Random generator or seed; None: a generator that belongs to this process.
Rng = np.random.Generator | int | None


def key_of(graphs: Sequence[str], asked: str) -> str | None:
    """The graph of an archive that a requested key refers to, or None.

    The documented format stores one graph without its key, so any key refers to it.
    """
    if asked not in graphs and len(graphs) == 1 and NEIGHBOR_KEY in (asked, *graphs):
        return graphs[0]
    return asked if asked in graphs else None


class NeighborStats(NamedTuple):
    """Statistics of the number of neighbours per cell.

    Examples
    --------
    >>> data.graph.stats()
    NeighborStats(total=5, least=0, most=1, n_isolated=1)
    """

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
        Sampling strategy, or its name.
    fallback_to_identity
        Whether a cell without neighbours is its own neighbour; if False, sampling from it is an
        error. Weighted sampling treats a cell whose weights are all 0 the same way.

    Raises
    ------
    NeighborError
        The archive has no such graph, or it is not cells x cells.

    Examples
    --------
    >>> graph = data.graph
    >>> graph.neighbors(0).indices
    array([1], dtype=uint32)
    >>> graph.sample_batch(np.array([0, 1]), rng=0)
    array([1, 2])
    >>> graph.stats().n_isolated
    1
    """

    def __init__(
        self,
        store: ArrayStore,
        key: str,
        strategy: NeighborSamplingStrategy | str = NeighborSamplingStrategy.RANDOM,
        *,
        fallback_to_identity: bool = True,
    ) -> None:
        if key not in (known := graph_keys(store)):
            raise NeighborError(
                f"{store.path}: there is no neighbour graph {key!r}; "
                f"the archive has: {', '.join(known) or 'none'}"
            )
        self.key = key
        self._store = store
        self._prefix = graph_array(key, "")
        self._strategy = NeighborSamplingStrategy(strategy)
        self._fallback = fallback_to_identity
        self._rng: tuple[int, np.random.Generator] | None = None
        # In a graph of another shape, cells could get neighbours of other cells.
        n_obs = store.spec(INDPTR).length - 1
        stated = store.sparse.get(self._prefix.removesuffix("/"))
        shape = (self.n_obs, n_obs) if stated is None else stated.shape
        if shape != (n_obs, n_obs):
            raise NeighborError(
                f"{self._where} is {shape[0]} x {shape[1]}, expected {n_obs} x {n_obs}, one row "
                "and one column per cell; convert the source again"
            )

    @property
    def _where(self) -> str:
        return f"{self._store.path}: the neighbour graph {self.key!r}"

    @property
    def n_obs(self) -> int:
        """Number of cells."""
        return self._store.spec(self._prefix + INDPTR).length - 1

    def neighbors(self, index: SupportsIndex) -> csr.SparseRows:
        """Neighbours of one cell and their weights.

        Raises
        ------
        NeighborError
            A neighbour is not a cell of the archive.
        """
        row = np.array([csr.position(index, self.n_obs)], np.int64)
        neighbors = StoredRows.of(self._store, self._prefix, row).read()
        self.check_inside(neighbors.indices[None], row)
        return neighbors

    def sample(self, index: SupportsIndex, rng: Rng = None) -> int:
        """Sample one neighbour of a cell; raises the errors of :meth:`sample_many`."""
        row = np.array([csr.position(index, self.n_obs)], np.int64)
        return int(self.sample_batch(row, rng)[0])

    def sample_many(self, rows: NDArray[np.int64], draws: NDArray[np.float64]) -> NDArray[np.int64]:
        """Sample neighbours of many cells, with replacement.

        Parameters
        ----------
        rows
            n positions, int64.
        draws
            n x k random numbers in [0, 1), one per sampled neighbour.

        Returns
        -------
        ndarray
            n x k rows, int64.

        Raises
        ------
        NeighborError
            A cell has no neighbours and there is no fallback; a neighbour is not a cell of the
            archive; or weights are used and one is negative or not finite.
        """
        starts, stops = StoredRows.of(self._store, self._prefix, rows).plan()
        indptr = np.zeros(len(rows) + 1, np.int64)
        np.cumsum(stops - starts, out=indptr[1:])

        def weights() -> NDArray[Any]:
            values = np.empty(int(indptr[-1]), self._store.spec(self._prefix + DATA).dtype)
            self._store.read_ranges(self._prefix + DATA, starts, stops, values)
            return values

        chosen, bad = choose(self._strategy, indptr, draws, weights)
        if bad >= 0:
            cell = int(np.searchsorted(indptr, bad, side="right")) - 1
            raise NeighborError(
                f"{self._where}: cell {rows[cell]} has a neighbour of weight {weights()[bad]}, "
                "expected a finite number >= 0; use the strategy 'random' or 'first'"
            )
        has_one = chosen[:, 0] >= 0
        if not self._fallback and not has_one.all():
            weighted = self._strategy is NeighborSamplingStrategy.WEIGHTED
            raise NeighborError(
                f"{self._where}: cell {rows[has_one.argmin()]} has no neighbours"
                f"{' of a weight above 0' * weighted}; pass fallback_to_identity=True to sample "
                "the cell itself"
            )
        at = (starts[:, None] + chosen)[has_one].ravel()
        found = read_items(self._store, self._prefix + INDICES, at)
        neighbors = found.reshape(-1, draws.shape[1])
        self.check_inside(neighbors, rows[has_one])
        out = np.repeat(rows[:, None], draws.shape[1], axis=1)
        out[has_one] = neighbors
        return out

    def check_inside(self, neighbors: NDArray[Any], rows: NDArray[np.int64] | None = None) -> None:
        """Raise NeighborError if neighbours are out of range; `rows` are their cells, if known."""
        if neighbors.size and not 0 <= int(neighbors.min()) <= int(neighbors.max()) < self.n_obs:
            outside = (neighbors < 0) | (neighbors >= self.n_obs)
            cell = "a cell" if rows is None else f"cell {rows[outside.any(axis=1).argmax()]}"
            raise NeighborError(
                f"{self._where}: {cell} has the neighbour {neighbors[outside][0]}, expected a row "
                f"in [0, {self.n_obs}); the archive is damaged, convert the source again"
            )

    def draws(self, n: int, k: int, rng: Rng = None) -> NDArray[np.float64]:
        """Draw n x k random numbers for :meth:`sample_many`.

        Raises
        ------
        NeighborError
            `rng` is not a generator or seed.
        """
        try:
            generator = self._own_rng() if rng is None else np.random.default_rng(rng)
        except (TypeError, ValueError) as error:
            raise NeighborError(
                f"rng must be a numpy.random.Generator or a seed, not {rng!r:.200}"
            ) from error
        return generator.random((n, k))

    def sample_batch(self, rows: NDArray[np.int64], rng: Rng = None) -> NDArray[np.int64]:
        """Sample one neighbour of each of many cells, as :meth:`sample` does for one."""
        return self.sample_many(rows, self.draws(len(rows), 1, rng))[:, 0]

    def _own_rng(self) -> np.random.Generator:
        """The generator of this process; forked workers must not draw the same numbers."""
        if self._rng is None or self._rng[0] != os.getpid():
            self._rng = os.getpid(), np.random.default_rng()
        return self._rng[1]

    def __getstate__(self) -> dict[str, Any]:
        return self.__dict__ | {"_rng": None}

    def stats(self) -> NeighborStats:
        """Compute statistics over all cells in constant memory."""
        total, least, most, n_isolated = 0, np.iinfo(np.int64).max, 0, 0
        for counts in self._counts():
            total += int(counts.sum())
            least = min(least, int(counts.min()))
            most = max(most, int(counts.max()))
            n_isolated += int((counts == 0).sum())
        return NeighborStats(total, least if self.n_obs else 0, most, n_isolated)

    def _counts(self) -> Iterator[NDArray[np.int64]]:
        for start, stop in csr.spans(self.n_obs, _OFFSETS_AT_ONCE):
            offsets = self._store.read(self._prefix + INDPTR, start, stop + 1)
            yield offsets[1:].astype(np.int64) - offsets[:-1].astype(np.int64)
