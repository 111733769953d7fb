"""The first cells of a dataset, to look at: their values of obs, and their largest genes."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from scdl.archive.schema import INDEX
from scdl.errors import FeatureNotFoundError, OptionError
from scdl.reports import Report

if TYPE_CHECKING:
    from scdl.dataset.rows import RowReader


@dataclass(frozen=True)
class HeadCell(Report):
    """One of the first cells.

    Parameters
    ----------
    name
        Name of the cell; None if names are not stored.
    n_genes, total
        Number of its stored values, and their sum.
    obs
        Value of each column of obs; None if it is missing.
    genes
        The largest values by the name of their gene, descending. A gene without a name has the
        number of its column, and one whose name repeats has it in addition: ``"MATR3 (412)"``.

    Examples
    --------
    >>> cell = data.head(1).cells[0]
    >>> cell.obs, cell.genes
    ({'cell_type': 'B', 'donor': 'd1'}, {'CD3E': 2.0, 'LYZ': 1.0})
    """

    name: str | None
    n_genes: int
    total: float
    obs: Mapping[str, Any]
    genes: Mapping[str, float]

    @property
    def obs_text(self) -> str:
        """The values of obs on one line."""
        return ", ".join(f"{name} {value}" for name, value in self.obs.items())

    @property
    def genes_text(self) -> str:
        """The largest genes on one line."""
        return ", ".join(f"{name} {value:g}" for name, value in self.genes.items())


@dataclass(frozen=True)
class Head(Report):
    """The first cells of a dataset or a collection.

    Parameters
    ----------
    n_obs
        Number of all cells.
    cells
        The first of them.

    Examples
    --------
    >>> head = data.head(2)
    >>> [cell.name for cell in head.cells]
    ['cell0', 'cell1']
    """

    n_obs: int
    cells: tuple[HeadCell, ...]

    def __str__(self) -> str:
        lines = [f"the first {len(self.cells):,} of {self.n_obs:,} cells"]
        for row, cell in enumerate(self.cells):
            lines += ["", f"{row if cell.name is None else cell.name}"]
            lines += [f"  obs    {cell.obs_text}"] * bool(cell.obs)
            lines += [f"  genes  {cell.n_genes:,} stored, sum {cell.total:g}"]
            lines += [f"  most   {cell.genes_text}"] * bool(cell.genes)
        return "\n".join(lines)


def head_of(cells: RowReader, n: int, genes: int) -> Head:
    """The first `n` cells, each with its `genes` largest genes; see :meth:`RowReader.head`."""
    if n < 0 or genes < 0:
        raise OptionError(f"n and genes must not be negative, but are {n} and {genes}")
    n = min(n, cells.n_obs)
    batch = cells.read_rows(np.arange(n), genes=None if len(cells.info.blocks) == 1 else "own")
    obs = _first_obs(cells, n)
    found = []
    for row in range(n):
        stored = slice(int(batch.indptr[row]), int(batch.indptr[row + 1]))
        values, ids = batch.data[stored], batch.indices[stored]
        # Genes of equal values in the order of the archive.
        largest = np.argsort(-values.astype(np.float64), kind="stable")[:genes]
        labels = _labels(cells, row, ids[largest].astype(np.int64))
        found.append(
            HeadCell(
                name=obs[row].pop(INDEX, None),
                n_genes=len(values),
                total=float(values.sum(dtype=np.float64)),
                obs=obs[row],
                genes=dict(zip(labels, values[largest].tolist(), strict=True)),
            )
        )
    return Head(cells.n_obs, tuple(found))


def _labels(cells: RowReader, row: int, ids: Any) -> list[str]:
    """Names of genes of a cell."""
    block = cells.var_features().blocks[cells.info.block_of(row)]
    try:
        names = block.column(INDEX)
    except FeatureNotFoundError:
        return [f"column {i}" for i in ids]
    return [
        f"{names[i]} ({i})" if np.count_nonzero(names == names[i]) > 1 else str(names[i])
        for i in ids.tolist()
    ]


def _first_obs(cells: RowReader, n: int) -> list[dict[str, Any]]:
    """Values of obs of the first cells, with their names as :data:`INDEX`."""
    if cells.obs_features() is None:
        return [{} for _ in range(n)]
    rows: list[dict[str, Any]] = []
    for _, table in cells._obs_batches(list):
        rows += table.slice(0, n - len(rows)).to_pylist()
        if len(rows) == n:
            break
    return rows
