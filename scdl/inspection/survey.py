"""What an archive or a collection holds, counted from a sample of its cells."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from scdl.archive.gene_space import OWN
from scdl.collection.verification import verify as verify_archive
from scdl.dataset.batch import CellBatch
from scdl.errors import OptionError
from scdl.inspection.description import describe
from scdl.inspection.distributions import Distribution, Labels, distribution
from scdl.opening import open as open_archive
from scdl.reports import Report
from scdl.verification.verify import VerificationReport
from storage_backends.directory import publication
from storage_backends.paths import Path, path_of

if TYPE_CHECKING:
    from scdl.dataset.reader import CellReader

#: Cells that are read at once.
_CELLS_AT_ONCE = 1_000
#: Values of these that are counted.
_VALUES_AT_ONCE = 100_000


@dataclass(frozen=True)
class DataReport(Report):
    """What an archive or a collection holds.

    ``str()`` is a short text; notebooks show the page that :meth:`to_html` returns.

    Parameters
    ----------
    description
        What ``scdl info --json`` says: numbers, dtypes, sizes, tables, elements.
    n_sampled
        Number of cells that the distributions were counted from.
    genes_per_cell, total_per_cell
        Number of stored values of a cell, and their sum.
    values
        Some of their stored values, up to a million.
    cells_per_gene
        Share of the sampled cells with a stored value of a gene, in percent, for each gene; None if
        cells have different genes.
    obs
        The values of each column of obs.
    graphs
        Number of neighbours of each cell by graph: their mean, least and most, and how many cells
        have none.
    verification
        What :func:`scdl.verify` found; None if that was not asked for.

    Examples
    --------
    >>> report = scdl.report("cells.scdl")
    >>> report.description["n_obs"], report.verification.is_sound
    (6, True)
    """

    description: Mapping[str, Any]
    n_sampled: int
    genes_per_cell: Distribution
    total_per_cell: Distribution
    values: Distribution
    cells_per_gene: Distribution | None
    obs: Mapping[str, Distribution | Labels]
    graphs: Mapping[str, Mapping[str, float]]
    verification: VerificationReport | None

    def to_html(self) -> str:
        """An HTML page that needs no other file.

        Examples
        --------
        >>> page = scdl.report("cells.scdl").to_html()
        >>> "<html" in page
        True
        """
        from scdl.inspection.page import page

        return page(self)

    def _repr_html_(self) -> str:
        from scdl.inspection.page import body

        return body(self)

    def __str__(self) -> str:
        about = self.description
        genes = " + ".join(f"{n:,}" for n in about["n_vars"])
        lines = {
            "stored values": f"{about['nnz']:,}, {about['nbytes']:,} bytes on disk",
            "genes per cell": self.genes_per_cell,
            "sum per cell": self.total_per_cell,
            "values": self.values,
            **{f"obs {name}": column for name, column in self.obs.items()},
        }
        if self.verification is not None:
            lines["verified"] = self.verification.verdict.name.lower()
        return "\n".join(
            [
                f"{about['path']}: {about['n_obs']:,} cells x {genes} genes; "
                f"distributions of {self.n_sampled:,} cells",
                *(f"  {name}: {fact}" for name, fact in lines.items()),
            ]
        )


def report(
    path: Path,
    out: Path | None = None,
    *,
    cells: int = 10_000,
    seed: int = 0,
    verify: bool = True,
    deep: bool = False,
    replace: bool = False,
    progress: bool = False,
) -> DataReport:
    """Report what an archive or a collection holds, as a page to look at.

    The page shows the contents, sizes by array, distributions of genes and sums per cell, values,
    columns of obs and graphs, and whether the archive is sound.

    Parameters
    ----------
    path
        An archive of any backend, or a collection.
    out
        HTML file to write; None: only return the report. The page needs no other file.
    cells
        Number of cells to count distributions from, drawn at random with `seed`; all if there are
        no more.
    verify, deep
        Whether to verify the archive, and whether to compare every byte with its checksum; see
        :func:`scdl.verify`.
    replace
        Whether to replace `out` if it exists.
    progress
        Whether to show a progress bar of the verification.

    Returns
    -------
    DataReport

    Raises
    ------
    ArchiveNotFoundError, ArchiveFormatError
        As :func:`scdl.open`.
    OptionError
        `cells` is not a positive integer.
    ArchiveExistsError
        `out` exists.

    Examples
    --------
    >>> report = scdl.report("cells.scdl", "cells.html")
    >>> report.n_sampled
    6
    """
    path = path_of(path, "the path of an archive or a collection")
    if isinstance(cells, bool) or not isinstance(cells, int | np.integer) or cells < 1:
        raise OptionError(f"cells must be a positive integer, not {cells!r}")
    target = None if out is None else path_of(out, "the path of an HTML file")
    if target is not None:
        publication.require_absent(target, replace=replace)
    description = describe(path)
    verification = verify_archive(path, deep=deep, progress=progress) if verify or deep else None
    found = _counted(open_archive(path), description, int(cells), seed, verification)
    if target is not None:
        with publication.new_file(target) as part, open(part, "w", encoding="utf-8") as file:
            file.write(found.to_html())
    return found


def _counted(
    data: CellReader,
    description: Mapping[str, Any],
    cells: int,
    seed: int,
    verification: VerificationReport | None,
) -> DataReport:
    rows = _sample(data.n_obs, cells, seed)
    alone = len(data.gene_spaces) == 1
    n_genes, totals, values = [np.empty(0)], [np.empty(0)], [np.empty(0)]
    expressed = np.zeros(data.max_n_vars, np.int64)
    obs: dict[str, list[NDArray[Any]]] = {}
    table = data.obs_features()
    columns = table.columns.names if table is not None else []
    for start in range(0, len(rows), _CELLS_AT_ONCE):
        batch = data.read_rows(
            rows[start : start + _CELLS_AT_ONCE], genes=None if alone else OWN, obs=columns
        )
        n_genes.append(np.diff(batch.indptr))
        totals.append(batch.row_totals())
        values.append(_some_values(batch))
        if alone:
            expressed += np.bincount(batch.indices, minlength=len(expressed))
        for name, column in batch.obs.items():
            obs.setdefault(name, []).append(column)
    shares = expressed / max(len(rows), 1) * 100
    return DataReport(
        description,
        len(rows),
        Distribution.of(_joined(n_genes)),
        Distribution.of(_joined(totals)),
        Distribution.of(_joined(values)),
        Distribution.of(shares) if alone else None,
        {name: distribution(_joined(parts)) for name, parts in obs.items()},
        {key: _neighbors(data, key) for key in data.neighbor_keys},
        verification,
    )


def _sample(n: int, size: int, seed: int) -> NDArray[np.int64]:
    """Sorted random rows; all if there are not more than `size`."""
    if n <= size:
        return np.arange(n)
    # Unlike a permutation, Floyd's algorithm does not take memory for all rows.
    drawn = np.random.default_rng(seed).choice(n, size, replace=False, shuffle=False)
    return np.sort(drawn)


def _some_values(batch: CellBatch) -> NDArray[Any]:
    """Values of a batch at equal distances: enough for a histogram, in little memory."""
    return batch.data[:: 1 + len(batch.data) // _VALUES_AT_ONCE].copy()


def _joined(parts: list[NDArray[Any]]) -> NDArray[Any]:
    """Arrays of batches as one."""
    found = [part for part in parts if len(part)]
    return np.concatenate(found) if found else parts[0]


def _neighbors(data: CellReader, key: str) -> dict[str, float]:
    graph = data._graph_of(key)
    assert graph is not None
    stats = graph.stats()
    return {
        "mean": stats.total / max(data.n_obs, 1),
        "least": stats.least,
        "most": stats.most,
        "without": stats.n_isolated,
    }
