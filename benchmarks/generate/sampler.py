"""Draw cells: mix two real cells of one type, and thin them to fewer counts."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt
import scipy.sparse as sp
from scipy.cluster.hierarchy import leaves_list, linkage
from scipy.optimize import brentq

from benchmarks.generate.real_cells import TemplateCells

RARE_SHARE = 0.01
"""Share of a cell's detected genes that no template expresses.

An assumption: rare genes were removed from the sample that the templates are from.
"""

_CALIBRATION_CELLS = 1_024
_CLUSTERING_GENES = 1_000


class CellSampler:
    """Draws counts that keep the gene frequencies, depths and count distribution of real cells.

    A cell takes each count of two template cells of its type with one probability, a part of it
    from the one and the rest from the other, as if fewer of their molecules had been sequenced.
    Unlike resampling by Poisson counts, thinning keeps how different the depths of cells are, and
    that most counts are one. A small share of counts falls on genes that no template expresses, so
    that these are rare but not absent, as in large data sets.

    Parameters
    ----------
    templates
        The cells to resample.
    n_genes
        Genes of the drawn cells. More than the templates have: the rest is spread among them.
        Fewer: the most expressed ones are kept. Either way in the templates' order.
    type_shares
        Share of each cell type among the cells; a type is a group of templates of similar
        expression.
    nnz_per_cell
        Mean number of detected genes of a cell.
    rng
        Random numbers of everything that is fixed for all cells.

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
        type_shares: npt.NDArray[np.float64],
        nnz_per_cell: float,
        rng: np.random.Generator,
    ) -> None:
        self.n_genes = n_genes
        self._counts, self.gene_positions, self.template_genes = _on_gene_axis(
            templates.counts, n_genes, rng
        )
        self._types = _similar_groups(self._counts, len(type_shares))
        unseen = np.bincount(self._counts.indices, minlength=n_genes) == 0
        rates = rng.lognormal(0.0, 2.0, n_genes) * unseen
        self._rare = np.cumsum(rates / rates.sum()) if unseen.any() else None
        self._n_rare = nnz_per_cell * RARE_SHARE if unseen.any() else 0.0
        types = rng.choice(len(type_shares), _CALIBRATION_CELLS, p=type_shares)
        self._kept_share = self._solve_kept_share(types, nnz_per_cell, rng)

    def draw(self, types: npt.NDArray[np.integer[Any]], rng: np.random.Generator) -> sp.csr_matrix:
        """Draw one cell for each entry of `types`.

        Returns
        -------
        scipy.sparse.csr_matrix
            Counts, float32, ``len(types)`` × `n_genes`, sorted by gene, at least one a cell.
        """
        pairs, shares = self._pairs(types, rng)
        counts = self._rare_genes(len(types), rng)
        for cells, share in zip(pairs, shares, strict=True):
            counts = counts + _thinned(self._counts[cells], self._kept_share * share, rng)
        counts.eliminate_zeros()
        empty = np.flatnonzero(np.diff(counts.indptr) == 0)
        if len(empty):
            of_template = self._counts[pairs[0][empty]]
            ones = np.ones(len(empty), np.float32)
            genes = of_template.indices[of_template.indptr[:-1]]
            counts = counts + sp.csr_matrix((ones, (empty, genes)), shape=counts.shape)
        counts.sort_indices()
        return counts

    def _pairs(
        self, types: npt.NDArray[np.integer[Any]], rng: np.random.Generator
    ) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.float64]]:
        """Two template cells for each cell, and the share of each in it: 2 x cells."""
        sizes = np.array([len(group) for group in self._types])
        first = (np.cumsum(sizes) - sizes)[types]
        picks = first + (rng.random((2, len(types))) * sizes[types]).astype(np.int64)
        share = rng.uniform(0.3, 0.7, len(types))
        return np.concatenate(self._types)[picks], np.stack([share, 1.0 - share])

    def _rare_genes(self, n_cells: int, rng: np.random.Generator) -> sp.csr_matrix:
        """Single counts of genes that no template expresses."""
        if self._rare is None:
            return sp.csr_matrix((n_cells, self.n_genes), dtype=np.float32)
        numbers = rng.poisson(self._n_rare, n_cells)
        # The last gene may be one that templates express, and rates sum to one but for rounding.
        genes = np.searchsorted(self._rare, rng.random(int(numbers.sum())) * self._rare[-1])
        cells = np.repeat(np.arange(n_cells), numbers)
        ones = np.ones(len(genes), np.float32)
        return sp.csr_matrix((ones, (cells, genes)), shape=(n_cells, self.n_genes))

    def _solve_kept_share(
        self,
        types: npt.NDArray[np.integer[Any]],
        nnz_per_cell: float,
        rng: np.random.Generator,
    ) -> float:
        """Share of the counts to keep for an expected `nnz_per_cell` genes of cells of `types`."""
        pairs, shares = self._pairs(types, rng)
        counts = [self._counts[cells] for cells in pairs]

        def detected(kept: float) -> float:
            missed: sp.csr_matrix = sum(
                sp.diags(np.log1p(-np.minimum(kept * share, 1.0 - 1e-9))) @ part
                for part, share in zip(counts, shares, strict=True)
            )
            return float(-np.expm1(missed.data).sum() / len(types) + self._n_rare)

        most = 0.98 * detected(1.0)
        if not 0 < nnz_per_cell < most:
            raise ValueError(
                f"{nnz_per_cell} stored values per cell cannot be drawn from these templates over "
                f"{self.n_genes} genes; ask for more than 0 and fewer than {int(most)}"
            )
        return float(brentq(lambda kept: detected(kept) - nnz_per_cell, 0.0, 1.0, xtol=1e-6))


def _thinned(
    counts: sp.csr_matrix, kept: npt.NDArray[np.float64], rng: np.random.Generator
) -> sp.csr_matrix:
    """Keep each count with the probability of its row."""
    numbers = counts.data.astype(np.int64)
    chances = np.repeat(kept, np.diff(counts.indptr))
    drawn = (rng.random(len(numbers)) < chances).astype(np.float32)
    many = np.flatnonzero(numbers > 1)
    drawn[many] = rng.binomial(numbers[many], chances[many])
    return sp.csr_matrix((drawn, counts.indices, counts.indptr), shape=counts.shape)


def _on_gene_axis(
    counts: sp.csr_matrix, n_genes: int, rng: np.random.Generator
) -> tuple[sp.csr_matrix, npt.NDArray[np.int64], npt.NDArray[np.int64]]:
    """Move template columns to the gene axis; return also their new and old positions."""
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
