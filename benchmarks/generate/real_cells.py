"""Template cells that generated data is resampled from."""

from __future__ import annotations

from dataclasses import dataclass
from importlib import metadata
from pathlib import Path

import numpy as np
import scipy.sparse as sp

_CELLTYPIST_FILE = "celltypist/data/samples/sample_cell_by_gene.csv"


class TemplatesNotFoundError(FileNotFoundError):
    """The real cells that the generator resamples are not installed."""


@dataclass(frozen=True)
class TemplateCells:
    """Counts of a few hundred cells, the source of every generated cell.

    Attributes
    ----------
    counts
        Counts, cells × genes, float32; every cell has at least one count.
    gene_names
        One name for each column of `counts`.
    """

    counts: sp.csr_matrix
    gene_names: list[str]


def celltypist_cells() -> TemplateCells:
    """Read the 559 human cells × 32,786 genes that the package celltypist ships as a sample.

    celltypist is located, not imported, so it may be installed without its dependencies.

    Returns
    -------
    TemplateCells
        Raw counts of all cells of the sample.

    Raises
    ------
    TemplatesNotFoundError
        celltypist, or its sample, is not installed.
    """
    try:
        path = Path(str(metadata.distribution("celltypist").locate_file(_CELLTYPIST_FILE)))
    except metadata.PackageNotFoundError:
        path = None
    if path is None or not path.is_file():
        raise TemplatesNotFoundError(
            f"the generator resamples real cells from {_CELLTYPIST_FILE}, which is not installed; "
            "run 'pip install --no-deps celltypist', or pass '--source synthetic'"
        )
    return _read_csv(path)


def _read_csv(path: Path) -> TemplateCells:
    """Read a table of counts: a header of gene names, then one line a cell, its name first."""
    with path.open() as lines:
        gene_names = next(lines).rstrip("\n").split(",")[1:]
        rows = [
            sp.csr_matrix(np.fromstring(line.partition(",")[2], dtype=np.float32, sep=","))
            for line in lines
        ]
    return TemplateCells(sp.vstack(rows, format="csr"), gene_names)


def synthetic_cells(n_cells: int = 120, n_genes: int = 2_000, seed: int = 0) -> TemplateCells:
    """Make synthetic template cells, for tests and machines without celltypist.

    Counts are gamma-Poisson with log-normal mean expression, which gives the skewed gene
    frequencies and the long tail of counts of real cells, but not their correlations.

    Parameters
    ----------
    n_cells, n_genes
        Shape of the templates.
    seed
        Equal seeds give equal templates.
    """
    rng = np.random.default_rng(seed)
    means = rng.lognormal(-1.5, 1.8, n_genes)
    counts = rng.poisson(means * rng.gamma(0.8, 1.0 / 0.8, (n_cells, n_genes)))
    counts[:, 0] += 1
    names = [f"GENE{number}" for number in range(n_genes)]
    return TemplateCells(sp.csr_matrix(counts.astype(np.float32)), names)
