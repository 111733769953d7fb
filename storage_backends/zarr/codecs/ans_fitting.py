"""Fitting the tables of the codec ``scdl.ans`` to a sample of an array."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from storage_backends.compute.jit import kernel
from storage_backends.zarr.codecs.ans_format import (
    ESCAPE,
    N_DEPTHS,
    N_PLACES,
    N_STATES,
    N_TOKENS,
    Tables,
    token_of,
)
from storage_backends.zarr.codecs.ans_writing import rows_of, tokens_of

#: Numbers of tables to try, and rounds of clustering.
_N_TABLES, _ROUNDS = (1, 2, 4, 8, 16), 10
#: Weight of the tokens of all contexts in those of a cluster, which may not have all of them.
_PRIOR = 0.3
#: Times that the metadata of an archive hold the tables, in bits for a byte.
_BITS_OF_BYTE = 2 * 8


def fit(
    values: NDArray[Any], ends: NDArray[np.int64], n_items: int, *, differences: bool
) -> Tables:
    """The tables with which an array is smallest.

    Parameters
    ----------
    values, ends
        Whole rows of the array, and where each ends.
    n_items
        Items of the array.
    differences
        Whether the items are ids in ascending order within each row.
    """
    counts = _counted(values, rows_of(len(values), ends), differences)
    share = n_items / max(len(values), 1)
    found = []
    for n_tables in _N_TABLES:
        tables = _clustered(counts, n_tables)
        size = _bits(counts, tables) * share + _BITS_OF_BYTE * len(tables.to_text())
        found.append((size, n_tables, tables))
    return min(found, key=lambda entry: entry[:2])[2]


def _counted(
    values: NDArray[Any], edges: NDArray[np.int64], differences: bool
) -> NDArray[np.int64]:
    """How often each token occurs in each context."""
    numbers = values.view(f"u{values.itemsize}").astype(np.uint64)
    contexts = np.empty(len(values), np.int64)
    tokens_of(numbers, values.itemsize, edges, differences, contexts)
    counts = np.zeros((N_DEPTHS * N_PLACES, N_TOKENS), np.int64)
    _count(numbers, contexts, counts)
    return counts


@kernel
def _count(
    numbers: NDArray[np.uint64], contexts: NDArray[np.int64], counts: NDArray[np.int64]
) -> None:
    for k in range(len(numbers)):
        counts[contexts[k], token_of(numbers[k])] += 1


def _clustered(counts: NDArray[np.int64], n_tables: int) -> Tables:
    """Tables of clusters of contexts, each of which takes the table that codes it best."""
    used = np.flatnonzero(counts.sum(axis=1))
    found, totals = counts[used].astype(np.float64), counts[used].sum(axis=1)
    # At first by their mean tokens, in clusters of about as many numbers.
    order = np.argsort(found @ np.arange(N_TOKENS) / totals, kind="stable")
    cluster = np.empty(len(used), np.int64)
    before = np.cumsum(totals[order]) - totals[order]
    cluster[order] = before * n_tables // max(int(totals.sum()), 1)
    prior = _PRIOR * found.sum(axis=0) / max(found.sum(), 1) + 1e-4
    for _ in range(_ROUNDS):
        sums = _sums(found, cluster, n_tables) + prior
        cost = -np.log2(sums / sums.sum(axis=1, keepdims=True))
        cluster = (found @ cost.T).argmin(axis=1)
    weights = np.array([_weights(row) for row in _sums(found, cluster, n_tables) + prior])
    return Tables(_spread_out(used, cluster), weights)


def _sums(
    found: NDArray[np.float64], cluster: NDArray[np.int64], n_tables: int
) -> NDArray[np.float64]:
    sums = np.zeros((n_tables, N_TOKENS))
    np.add.at(sums, cluster, found)
    return sums


def _weights(counts: NDArray[np.float64]) -> NDArray[np.uint16]:
    """Weights in proportion to counts; tokens that are rare share that of the escape."""
    exact = counts / counts.sum() * N_STATES
    weights = np.round(exact).astype(np.int64)
    weights[ESCAPE] = max(1, round(exact[ESCAPE] + exact[weights == 0].sum()))
    while (missing := N_STATES - int(weights.sum())) != 0:
        # The step that costs least, or gains most.
        step = 1 if missing > 0 else -1
        possible = (weights > 0) & (weights + step > 0)
        changed = np.where(possible, weights + step, 1) / np.maximum(weights, 1)
        weights[np.where(possible, -counts * np.log2(changed), np.inf).argmin()] += step
    fitted: NDArray[np.uint16] = weights.astype(np.uint16)
    return fitted


def _spread_out(used: NDArray[np.int64], cluster: NDArray[np.int64]) -> NDArray[np.uint8]:
    """Table of each context, which for those without numbers is that of the nearest."""
    if not len(used):
        return np.zeros(N_DEPTHS * N_PLACES, np.uint8)
    depth, place = np.divmod(np.arange(N_DEPTHS * N_PLACES), N_PLACES)
    apart = 4 * abs(depth[:, None] - depth[used]) + abs(place[:, None] - place[used])
    nearest: NDArray[np.uint8] = cluster[apart.argmin(axis=1)].astype(np.uint8)
    return nearest


def _bits(counts: NDArray[np.int64], tables: Tables) -> float:
    """Bits of tokens by their weights; those without one cost the escape and an offset."""
    weights = tables.weights.astype(np.float64)
    cost = -np.log2(np.maximum(weights, 1) / N_STATES)
    cost = np.where(weights > 0, cost, cost[:, ESCAPE:] + 16)
    return float((counts * cost[tables.contexts]).sum())
