"""Strategies that choose among the neighbours of cells."""

from __future__ import annotations

from collections.abc import Callable
from enum import StrEnum
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from scdl.archive.casting import computable
from scdl.errors import NeighborError


class NeighborSamplingStrategy(StrEnum):
    """How :meth:`NeighborGraph.sample` chooses among the neighbours of a cell."""

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


class Choice(NamedTuple):
    """Chosen neighbours.

    Attributes
    ----------
    chosen
        Array of cells x draws: index among the neighbours of the cell, or -1 if there is none.
    bad
        If weights are used, the first entry whose weight is negative or not finite; otherwise -1.
    """

    chosen: NDArray[np.int64]
    bad: int


def choose(
    strategy: NeighborSamplingStrategy,
    indptr: NDArray[np.int64],
    draws: NDArray[np.float64],
    weights: Callable[[], NDArray[Any]],
) -> Choice:
    """Choose among the neighbours of cells.

    Parameters
    ----------
    indptr
        n + 1 offsets of the neighbours of n cells, starting at 0.
    draws
        n x k random numbers in [0, 1), one per chosen neighbour.
    weights
        Returns the weight of every neighbour; called only if weights are used.
    """
    if strategy is NeighborSamplingStrategy.WEIGHTED:
        from scdl.kernels import choice as choice_kernels

        values = weights()
        values = values.astype(computable(values.dtype), copy=False)
        chosen = np.empty(draws.shape, np.int64)
        return Choice(chosen, choice_kernels.choose_by_weight(values, indptr, draws, chosen))
    counts = np.diff(indptr)
    if strategy is NeighborSamplingStrategy.FIRST:
        draws = np.zeros_like(draws)
    chosen = (draws * counts[:, None]).astype(np.int64)
    chosen[counts == 0] = -1
    return Choice(chosen, -1)
