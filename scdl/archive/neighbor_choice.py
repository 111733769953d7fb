"""Strategies that choose among the neighbours of cells."""

from __future__ import annotations

from collections.abc import Callable
from enum import StrEnum
from typing import Any

import numpy as np
from numpy.typing import NDArray

from scdl.archive.casting import computable
from scdl.errors import NeighborError


class NeighborSamplingStrategy(StrEnum):
    """How :meth:`~scdl.archive.graph.NeighborGraph.sample` chooses among the neighbours of a cell.

    Examples
    --------
    >>> weighted = scdl.NeighborSamplingStrategy.WEIGHTED
    >>> dataset = scdl.open("cells.scdl", neighbor_sampling_strategy=weighted)
    >>> dataset.sample_neighbor_index(0)
    1
    """

    #: All neighbours with equal probability.
    RANDOM = "random"
    #: The neighbour that is stored first.
    FIRST = "first"
    #: With probabilities proportional to the weights.
    WEIGHTED = "weighted"

    @classmethod
    def _missing_(cls, value: object) -> NeighborSamplingStrategy:
        """Accept names in any case; raise NeighborError for unknown ones."""
        for strategy in cls:
            if str(value).lower() == strategy.value:
                return strategy
        raise NeighborError(
            f"there is no sampling strategy {value!r}; choose one of: {', '.join(cls)}"
        )


def choose(
    strategy: NeighborSamplingStrategy,
    indptr: NDArray[np.int64],
    draws: NDArray[np.float64],
    weights: Callable[[], NDArray[Any]],
) -> tuple[NDArray[np.int64], int]:
    """Choose among the neighbours of cells.

    Parameters
    ----------
    indptr
        n + 1 offsets of the neighbours of n cells, starting at 0.
    draws
        n x k random numbers in [0, 1), one per chosen neighbour.
    weights
        Returns the weight of every neighbour; called only if weights are used.

    Returns
    -------
    chosen, bad
        n x k indices among the neighbours of each cell, or -1 if it has none; and the first entry
        whose weight is used and negative or not finite, or -1.
    """
    if strategy is NeighborSamplingStrategy.WEIGHTED:
        from scdl.kernels import choice as choice_kernels

        values = weights()
        values = values.astype(computable(values.dtype), copy=False)
        chosen = np.empty(draws.shape, np.int64)
        return chosen, int(choice_kernels.choose_by_weight(values, indptr, draws, chosen))
    counts = np.diff(indptr)
    if strategy is NeighborSamplingStrategy.FIRST:
        draws = np.zeros_like(draws)
    chosen = (draws * counts[:, None]).astype(np.int64)
    chosen[counts == 0] = -1
    return chosen, -1
