"""Choosing neighbours of cells."""

from __future__ import annotations

from collections.abc import Callable
from enum import StrEnum
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from scdl.errors import NeighborError


class NeighborSamplingStrategy(StrEnum):
    """How :meth:`NeighborGraph.sample` chooses among the neighbours of a cell."""

    #: Each with the same probability.
    RANDOM = "random"
    #: The one stored first.
    FIRST = "first"
    #: Each in proportion to its weight.
    WEIGHTED = "weighted"

    @classmethod
    def _missing_(cls, value: object) -> NeighborSamplingStrategy:
        """Names in any case; NeighborError for those of no strategy."""
        for strategy in cls:
            if str(value).lower() == strategy.value:
                return strategy
        raise NeighborError(
            f"there is no strategy {value!r} to sample neighbours; there are: {', '.join(cls)}"
        )


class Choice(NamedTuple):
    """Neighbours that draws chose.

    Attributes
    ----------
    chosen
        Cells x draws: which of its neighbours, from 0; -1 of a cell that has none to choose.
    bad
        The first entry whose weight is negative or no finite number, if weights are used; or -1.
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
        Offsets of the neighbours of n cells, from 0.
    draws
        n x k numbers in [0, 1), each of which chooses one neighbour.
    weights
        Gives the weight of every neighbour; called where they are used.
    """
    if strategy is NeighborSamplingStrategy.WEIGHTED:
        from scdl.kernels import choice as choice_kernels

        found = weights()
        # numba cannot compute with float16.
        found = found.astype(np.float32) if found.dtype == np.float16 else found
        chosen = np.empty(draws.shape, np.int64)
        return Choice(chosen, choice_kernels.choose_by_weight(found, indptr, draws, chosen))
    counts = np.diff(indptr)
    if strategy is NeighborSamplingStrategy.FIRST:
        draws = np.zeros_like(draws)
    chosen = (draws * counts[:, None]).astype(np.int64)
    chosen[counts == 0] = -1
    return Choice(chosen, -1)
