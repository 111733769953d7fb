"""Reports of conversions."""

from __future__ import annotations

import math
import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from scdl.archive.schema import DATA, Info
from scdl.reports import Report
from scdl.sources.base import Tally
from storage_backends.base import Backend


@dataclass(frozen=True)
class ConversionReport(Report):
    """Report of a conversion.

    Parameters
    ----------
    path, backend
        Path of the archive and name of its backend.
    n_obs, n_vars, nnz
        Number of cells, of genes of each feature block, and of stored values.
    dtype
        Dtype of the values.
    matrices
        The matrix that was converted from each source.
    rows_sorted, duplicates_summed
        Number of rows whose genes were out of order, and of stored values that were added to
        another value of the same cell and gene; of the matrix and the fields.
    reordered
        Sources with the genes of an earlier source in another order; they were reordered to match.
    differing_var
        Columns of var that sources with the same genes do not share; each source keeps its own.
    not_carried
        Elements of the sources that are not in the archive, and values that were left out.
    max_rounding
        Largest absolute rounding error of casting to `dtype`.
    is_counts
        Whether all values of the matrix are non-negative integers.
    nbytes
        Size on disk in bytes.
    seconds
        Duration in seconds. Of a dry run, NaN if no part of the matrix can be converted alone, as
        of a dense one whose chunks have all cells, and of some genes of one in CSC form.
    requires
        Packages that other programs need to read the archive.
    changed_columns
        Columns of obs whose types differ among the sources and whose values were converted to a
        common type, with a description: ``obs/flag (bool and int64 become int64)``.
    unmatched
        Sentences about names that did not match when tables were joined, for each source.
    cells_left_out
        Number of cells of all sources that were not chosen.
    genes_left_out
        Number of genes of each source that were not chosen.
    fields
        Names of the fields of the archive.
    dry_run
        Whether nothing was written, so that this is what is expected: `nbytes` and `seconds` are
        estimates, as is `nnz` of a dense matrix, and what is said of values is that of a sample.
    sampled_cells
        Number of cells of that sample. 0 if rows cannot be read alone, since all matrices are
        stored by columns: then `nbytes` is an upper bound.

    Examples
    --------
    >>> report = scdl.convert("cells.h5ad", "reported.scdl")
    >>> report.n_obs, report.n_vars, report.nnz, report.dtype
    (6, [4], 11, 'float32')
    >>> report.not_carried
    ('uns', 'layers/spliced', 'obsm/X_pca', 'obsp/connectivities')
    """

    path: str
    backend: str
    n_obs: int
    n_vars: list[int]
    nnz: int
    dtype: str
    matrices: list[str]
    rows_sorted: int
    duplicates_summed: int
    reordered: tuple[str, ...]
    differing_var: tuple[str, ...]
    not_carried: tuple[str, ...]
    max_rounding: float
    nbytes: int
    seconds: float
    requires: tuple[str, ...] = ()
    is_counts: bool = True
    changed_columns: tuple[str, ...] = ()
    unmatched: tuple[str, ...] = ()
    cells_left_out: int = 0
    genes_left_out: tuple[int, ...] = ()
    fields: tuple[str, ...] = ()
    dry_run: bool = False
    sampled_cells: int = 0

    def __str__(self) -> str:
        genes = " + ".join(f"{n:,}" for n in self.n_vars)
        source = ", ".join(dict.fromkeys(self.matrices))
        lines = [
            f"{self.path} ({self.backend}): {self.n_obs:,} cells x {genes} genes, "
            f"{self.nnz:,} values as {self.dtype} from {source}",
            f"{self.nbytes / 1e6:,.1f} MB in {self.seconds:.1f} s",
        ]
        if self.cells_left_out or any(self.genes_left_out):
            genes = " or ".join(f"{n:,}" for n in dict.fromkeys(self.genes_left_out))
            lines.append(f"left out: {self.cells_left_out:,} cells, {genes} genes")
        if self.fields:
            lines.append(f"fields: {', '.join(self.fields)}")
        if self.dry_run:
            lines[1] = self._expected()
        if not self.is_counts:
            lines.append(f"not counts: values of {source} are negative or not whole numbers")
        if self.rows_sorted:
            lines.append(f"sorted: {self.rows_sorted:,} cells whose genes were out of order")
        if self.duplicates_summed:
            lines.append(f"summed: {self.duplicates_summed:,} repeated entries of a cell and gene")
        if self.reordered:
            lines.append(f"genes brought into the order of the first: {', '.join(self.reordered)}")
        if self.differing_var:
            names = ", ".join(self.differing_var)
            lines.append(f"columns of var that differ, kept for each source: {names}")
        if self.max_rounding:
            lines.append(f"rounded: by up to {self.max_rounding:.3g}")
        if self.not_carried:
            lines.append(f"not carried over: {', '.join(self.not_carried)}")
        if self.requires:
            lines.append(needed(self.requires))
        if self.changed_columns:
            lines.append(f"changed: {'; '.join(self.changed_columns)}")
        lines += [f"joined: {sentence}" for sentence in self.unmatched]
        return "\n".join(lines)

    def _expected(self) -> str:
        """What a dry run says of size and duration."""
        size = f"{self.nbytes / 1e6:,.1f} MB"
        sample = f"estimated from {self.sampled_cells:,} cells"
        if not self.sampled_cells:
            size, sample = f"at most {size}", "as cells cannot be read alone"
        time = f"in about {self.seconds:.1f} s in one process"
        if math.isnan(self.seconds):
            time = "in a time that is unknown, as no part of the matrix can be converted alone"
        about = "about " * bool(self.sampled_cells)
        return f"dry run: {about}{size} {time}, {sample}; nothing was written"


def needed(packages: Sequence[str]) -> str:
    """Message about packages that other programs need to read an archive, and how to avoid them."""
    return (
        f"other programs need {', '.join(packages)} installed to read this archive; with the "
        "compressions fast and portable they need no additional packages"
    )


def report_of(
    path: str,
    stored: str,
    backend: Backend,
    info: Info,
    dtype: np.dtype[Any],
    tally: Tally,
    started: float,
    **more: Any,
) -> ConversionReport:
    """Describe an archive that was written.

    Parameters
    ----------
    path, stored
        Path as the user gave it, and without links.
    info, dtype, tally
        The cells, the dtype of the values, and their statistics.
    started
        Value of ``time.perf_counter`` at the start.
    more
        Other fields of the report, and those that differ.
    """
    with backend.store.open(stored, hold=False) as store:
        nnz, nbytes, requires = store.spec(DATA).length, store.nbytes, tuple(store.requires)
    fields: dict[str, Any] = {
        "n_obs": info.n_obs,
        "n_vars": [block.n_vars for block in info.blocks],
        "nnz": nnz,
        "matrices": list(info.matrices),
        "reordered": (),
        "differing_var": (),
        "not_carried": (),
        **more,
    }
    return ConversionReport(
        path=path,
        backend=backend.name,
        dtype=dtype.name,
        rows_sorted=tally.rows_sorted,
        duplicates_summed=tally.duplicates_summed,
        max_rounding=tally.max_rounding,
        is_counts=tally.is_counts,
        nbytes=nbytes,
        seconds=time.perf_counter() - started,
        requires=requires,
        **fields,
    )
