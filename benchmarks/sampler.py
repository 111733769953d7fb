"""Draws cells: a mixture of template cells of one type, sequenced to a random depth."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt
import scipy.sparse as sp
from scipy.cluster.hierarchy import leaves_list, linkage
from scipy.optimize import brentq

from benchmarks.real_cells import TemplateCells

AMBIENT_SHARE = 0.03
"""Share of a cell's counts that come from the ambient profile, not from its own type."""

_CALIBRATION_CELLS = 1_024
_CLUSTERING_GENES = 1_000


class CellSampler:
    """Draws counts that keep the gene frequencies and count distribution of real cells.

    A cell is the mixture of two template cells of its type, scaled to a log-normal library size
    and resampled by Poisson counts. A small share is ambient: half of it follows the mean
    expression, half falls on genes that no template expresses, so that these are seen rarely but
    not never, as in large data sets. The mean library size is solved for the asked mean number of
    detected genes.

    Parameters
    ----------
    templates
        The cells to resample.
    n_genes
        Genes of the drawn cells. More than the templates have: the rest is spread among them.
        Fewer: the most expressed ones are kept. Either way in the templates' order.
    n_types
        Cell types; each is a group of templates of similar expression.
    nnz_per_cell
        Mean number of detected genes of a cell.
    rng
        Source of everything that is fixed for all cells.

    Raises
    ------
    ValueError
        Cells of these templates cannot have that many detected genes.
    """

    def __init__(
        self,
        templates: TemplateCells,
        *,
        n_genes: int,
        n_types: int,
        nnz_per_cell: float,
        rng: np.random.Generator,
    ) -> None:
        self.n_genes = n_genes
        counts, self.gene_positions, self.template_genes = _on_gene_axis(
            templates.counts, n_genes, rng
        )
        self._profiles = _rows_sum_to_one(counts)
        self._types = _similar_groups(counts, n_types)
        self._ambient = np.cumsum(_ambient_profile(self._profiles, rng))
        self._ambient[-1] = 1.0
        self._type_depths = rng.lognormal(0.0, 0.3, n_types)
        self._depth = 1.0
        self._depth = self._solve_depth(nnz_per_cell, rng)

    def draw(self, types: npt.NDArray[np.integer[Any]], rng: np.random.Generator) -> sp.csr_matrix:
        """Draw one cell for each entry of `types`.

        Returns
        -------
        scipy.sparse.csr_matrix
            Counts, float32, ``len(types)`` × `n_genes`, sorted by gene, at least one a cell.
        """
        rates, depths = self._rates(types, rng)
        rates.data = rng.poisson(rates.data).astype(np.float32)
        counts: sp.csr_matrix = rates + self._draw_ambient(depths, rng)
        counts.eliminate_zeros()
        empty = np.flatnonzero(np.diff(counts.indptr) == 0)
        if len(empty):
            genes = np.searchsorted(self._ambient, rng.random(len(empty)))
            ones = np.ones(len(empty), np.float32)
            counts = counts + sp.csr_matrix((ones, (empty, genes)), shape=counts.shape)
        counts.sort_indices()
        return counts

    def _rates(
        self, types: npt.NDArray[np.integer[Any]], rng: np.random.Generator
    ) -> tuple[sp.csr_matrix, npt.NDArray[np.float64]]:
        """Expected counts of the cells' own expression, and their library sizes."""
        n_cells = len(types)
        sizes = np.array([len(group) for group in self._types])[types]
        first = np.concatenate([[0], np.cumsum([len(group) for group in self._types])])[types]
        picks = first[:, None] + (rng.random((n_cells, 2)) * sizes[:, None]).astype(np.int64)
        share = rng.uniform(0.3, 0.7, n_cells)
        depths = self._depth * self._type_depths[types] * rng.lognormal(0.0, 0.45, n_cells)
        weights = np.stack([share, 1.0 - share], axis=1) * depths[:, None] * (1.0 - AMBIENT_SHARE)
        chosen = np.concatenate(self._types)[picks]
        mixing = sp.csr_matrix(
            (weights.ravel(), chosen.ravel(), np.arange(0, 2 * n_cells + 1, 2)),
            shape=(n_cells, self._profiles.shape[0]),
        )
        rates: sp.csr_matrix = mixing @ self._profiles
        return rates, depths

    def _draw_ambient(
        self, depths: npt.NDArray[np.float64], rng: np.random.Generator
    ) -> sp.csr_matrix:
        numbers = rng.poisson(depths * AMBIENT_SHARE)
        genes = np.searchsorted(self._ambient, rng.random(int(numbers.sum())))
        cells = np.repeat(np.arange(len(depths)), numbers)
        ones = np.ones(len(genes), np.float32)
        return sp.csr_matrix((ones, (cells, genes)), shape=(len(depths), self.n_genes))

    def _solve_depth(self, nnz_per_cell: float, rng: np.random.Generator) -> float:
        """Library size at which the expected number of detected genes is `nnz_per_cell`."""
        rates, depths = self._rates(rng.integers(0, len(self._types), _CALIBRATION_CELLS), rng)
        unseen = 0.5 * AMBIENT_SHARE * float(depths.mean())

        def excess(log_depth: float) -> float:
            depth = np.exp(log_depth)
            seen = -np.expm1(-depth * rates.data).sum() / _CALIBRATION_CELLS
            return float(seen + depth * unseen - nnz_per_cell)

        most = rates.nnz / _CALIBRATION_CELLS
        if not 0 < nnz_per_cell < 0.98 * most:
            raise ValueError(
                f"{nnz_per_cell} stored values per cell cannot be drawn from these templates over "
                f"{self.n_genes} genes; ask for more than 0 and fewer than {int(0.98 * most)}"
            )
        return float(np.exp(brentq(excess, -20.0, 30.0, xtol=1e-6)))


def _on_gene_axis(
    counts: sp.csr_matrix, n_genes: int, rng: np.random.Generator
) -> tuple[sp.csr_matrix, npt.NDArray[np.int64], npt.NDArray[np.int64]]:
    """Move template columns to the asked gene axis; also their new and their old positions."""
    n_template_genes = counts.shape[1]
    if n_genes >= n_template_genes:
        kept = np.arange(n_template_genes)
        positions = np.sort(rng.choice(n_genes, n_template_genes, replace=False))
    else:
        means = np.asarray(_rows_sum_to_one(counts).sum(axis=0)).ravel()
        kept = np.sort(np.argsort(-means, kind="stable")[:n_genes])
        positions = np.arange(n_genes)
    moved = counts[:, kept].tocsr()
    moved = sp.csr_matrix(
        (moved.data, positions[moved.indices], moved.indptr), shape=(counts.shape[0], n_genes)
    )
    expressed = np.flatnonzero(np.diff(moved.indptr) > 0)
    return moved[expressed], positions, kept


def _rows_sum_to_one(counts: sp.csr_matrix) -> sp.csr_matrix:
    totals = np.asarray(counts.sum(axis=1), dtype=np.float64).ravel()
    shares: sp.csr_matrix = (sp.diags(1.0 / np.maximum(totals, 1.0)) @ counts).tocsr()
    return shares


def _similar_groups(counts: sp.csr_matrix, n_groups: int) -> list[npt.NDArray[np.int64]]:
    """Cut the leaves of a hierarchical clustering of the cells into groups of equal size."""
    profiles = _rows_sum_to_one(counts)
    means = np.asarray(profiles.sum(axis=0)).ravel()
    genes = np.sort(np.argsort(-means, kind="stable")[:_CLUSTERING_GENES])
    leaves = leaves_list(linkage(np.log1p(1e4 * profiles[:, genes].toarray()), "ward"))
    order = np.resize(leaves.astype(np.int64), max(len(leaves), n_groups))
    return np.array_split(order, n_groups)


def _ambient_profile(profiles: sp.csr_matrix, rng: np.random.Generator) -> npt.NDArray[np.float64]:
    """Half the mean expression, half a log-normal tail over genes that no template expresses."""
    mean: npt.NDArray[np.float64] = np.asarray(profiles.mean(axis=0), dtype=np.float64).ravel()
    tail = rng.lognormal(0.0, 2.0, len(mean)) * (mean == 0)
    if tail.any():
        mean = 0.5 * mean + 0.5 * tail / tail.sum()
    mean /= mean.sum()
    return mean
